"""What the endpoints of one worker share: streams over a runtime, documents, keys, instruments."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Semaphore
from typing import Final, ParamSpec, TypeVar

from starlette.requests import Request

from rwkv_runtime.runtime import Runtime
from rwkv_runtime.server.access import Access
from rwkv_runtime.server.bodies import Bodies
from rwkv_runtime.server.documents import Documents
from rwkv_runtime.server.errors import ApiError
from rwkv_runtime.server.instruments import Instruments
from rwkv_runtime.server.prompts import Prompts
from rwkv_runtime.server.relay import Hub
from rwkv_runtime.serving.streams import Streams
from statestore.config import ServerSettings
from statestore.keys import Namespace
from statestore.store import StateStore

HELD_BYTES: Final = 512 << 20  # of all requests' bodies at once
BODY_TIMEOUT_S: Final = 60.0
MOST_ASIDE: Final = 16  # calls of an operator's kind at once

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """One worker's parts. Made in the thread of its event loop."""

    settings: ServerSettings
    model_name: str
    runtime: Runtime
    store: StateStore
    streams: Streams
    access: Access
    documents: Documents
    prompts: Prompts
    instruments: Instruments
    figures: Path  # the directory of all workers' values
    created: int  # seconds since the epoch; of the weights
    bodies: Bodies = field(init=False)
    hub: Hub = field(init=False, default_factory=Hub)
    quick: ThreadPoolExecutor = field(init=False)  # tokenising, lookups
    slow: ThreadPoolExecutor = field(init=False)  # documents that are read
    operators: ThreadPoolExecutor = field(init=False)  # listings, sums, removals
    patient: Semaphore = field(init=False)  # those who wait for `operators`

    def __post_init__(self) -> None:
        held = max(HELD_BYTES, self.settings.max_body_bytes, self.settings.max_document_bytes)
        threads = 2 * self.settings.readers  # more than are read at once: the rest are told so
        object.__setattr__(self, "bodies", Bodies(held, BODY_TIMEOUT_S))
        object.__setattr__(self, "quick", ThreadPoolExecutor(4, "asked"))
        object.__setattr__(self, "operators", ThreadPoolExecutor(2, "operator"))
        object.__setattr__(self, "patient", Semaphore(MOST_ASIDE))
        object.__setattr__(self, "slow", ThreadPoolExecutor(threads, "document"))

    @property
    def fingerprint(self) -> str:
        """Which weights and numerics answer, in OpenAI's form."""
        return f"fp_{self.runtime.engine.fingerprint.digest.hex()[:16]}"

    def namespace(self, request: Request) -> Namespace:
        """Whose request it is.

        Raises:
            ApiError: 401.
        """
        return self.access.namespace(request.headers.get("authorization"))

    def check_model(self, name: str | None) -> None:
        """Raises `ApiError`, 404, for another model than the one that is served."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"model {name[:100]!r} is not served here; {self.model_name!r} is",
                "model",
                "model_not_found",
            )

    async def quickly(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call that may compute or ask the store for a moment, off the event loop."""
        return await _within(self.quick, call, *args, **kwargs)

    async def aside(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call of an operator's kind, which a hanging store may not answer, on threads that
        no prompt needs.

        Raises:
            ApiError: 503, too many such calls wait already.
        """
        if not self.patient.acquire(blocking=False):
            raise ApiError(
                503, "the store does not answer; try again", code="store_down", retry_after_s=2
            )
        future = self.operators.submit(call, *args, **kwargs)
        future.add_done_callback(lambda _: self.patient.release())
        return await asyncio.wrap_future(future)

    async def slowly(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call that may take minutes, off the event loop."""
        return await _within(self.slow, call, *args, **kwargs)

    def close(self) -> None:
        """Take no more calls; those under way go on."""
        self.quick.shutdown(wait=False)
        self.slow.shutdown(wait=False)
        self.operators.shutdown(wait=False)


async def _within(
    pool: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(pool, functools.partial(call, *args, **kwargs))
