"""From settings to a running server: keys, address, weights, workers, in this order. What is wrong
is said before anything large is loaded.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from rwkv_runtime.engines import Engine
from rwkv_runtime.server.access import load_access
from rwkv_runtime.server.address import Address, reserve
from rwkv_runtime.server.supervisor import Supervisor
from rwkv_runtime.server.worker import Setup
from rwkv_runtime.tokenizer import tokenizer_for, warm_up
from statestore.config import ServerSettings
from statestore.keys import Namespace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and from where."""

    weights: Path
    model_name: str
    load: Callable[[], Engine]
    shared: bool  # loaded once, for all workers; else by each of them: a GPU is no child's
    store_url: str
    namespace: Namespace  # of requests without a key
    salts: Mapping[str, str] = field(default_factory=dict, repr=False)  # of keys' namespaces
    tokenizer: str | None = None
    access_log: Path | None = None


def launch(
    settings: ServerSettings, workers: int, served: Served, announce: Callable[[Address], None]
) -> int:
    """Serve until a signal; the exit code.

    Args:
        settings: of the server.
        workers: how many.
        served: what they serve.
        announce: called once, when all of them are ready.

    Raises:
        SettingsError: a key file or an address is not to be had.
        StateStoreError: whatever is wrong with the weights.
    """
    access = load_access(settings.api_keys, served.namespace, served.salts)
    address, held = reserve(settings.host, settings.port)
    figures = Path(tempfile.mkdtemp(prefix="rwkv-runtime-"))
    try:
        if not access.keys and not address.is_local:
            log.warning(
                "everybody who reaches %s is let in: give --api-keys, or --host 127.0.0.1",
                address.url,
            )
        setup = Setup(
            settings=settings,
            access=access,
            engine=_shared(served) if served.shared else served.load,
            store_url=served.store_url,
            tokenizer=served.tokenizer,
            access_log=served.access_log,
            model_name=served.model_name,
            created=int(served.weights.stat().st_mtime),
            figures=figures,
            address=address,
        )
        return Supervisor(setup, workers, partial(announce, address)).run()
    finally:
        held.close()
        shutil.rmtree(figures, ignore_errors=True)


def _shared(served: Served) -> Callable[[], Engine]:
    """The engine is loaded now, and is the same for all; so is the tokenizer's vocabulary, which
    takes 230 MB where it is RWKV World's.
    """
    torch.set_num_threads(1)  # no helpers: they would not live on in a forked child
    engine = served.load()
    warm_up(tokenizer_for(engine.vocabulary, served.tokenizer))
    return lambda: engine
