"""One worker: a process with an engine, a store and an event loop. It ends when it is told to, when
its supervisor has gone, or when its computing thread has ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import uvicorn

from rwkv_runtime.chat import template
from rwkv_runtime.engines import Engine
from rwkv_runtime.runtime import Runtime
from rwkv_runtime.server.access import Access
from rwkv_runtime.server.address import Address, open_at
from rwkv_runtime.server.app import application
from rwkv_runtime.server.documents import Documents
from rwkv_runtime.server.instruments import DIRECTORY_VARIABLE, Instruments, count_in_files
from rwkv_runtime.server.prompts import Prompts
from rwkv_runtime.server.protocol import HEAD_BYTES, TimedProtocol
from rwkv_runtime.server.service import Service
from rwkv_runtime.serving import Streams
from rwkv_runtime.tokenizer import Tokenizer, require_tokenizer, tokenizer_for, warm_up
from statestore.config import ServerSettings
from statestore.settings import open_store
from statestore.store import StateStore

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 1024
OTHER_FILES: Final = 512  # open at once beside connections: the store's, the engine's
KEEP_ALIVE_S: Final = 30
FLUSH_S: Final = 10.0
REPORT_S: Final = 1.0
ENDED_BY_ITSELF: Final = 70


@dataclass(frozen=True, slots=True)
class Setup:
    """What all workers of a server have in common."""

    settings: ServerSettings
    access: Access
    engine: Callable[[], Engine]
    store_url: str
    tokenizer: str | None
    access_log: Path | None
    model_name: str
    created: int  # seconds since the epoch; of the weights
    figures: Path  # the directory of all workers' values
    address: Address


def run(
    setup: Setup, place: int, lifeline: int, ready: Callable[[], None], *, successor: bool = False
) -> int:
    """Serve until told to end; the exit code.

    Args:
        setup: what to serve.
        place: of this worker among the others, from 0.
        lifeline: a file descriptor that becomes readable when the supervisor has gone.
        ready: called once it listens.
        successor: of one that died. The store was opened by this URL before; where it cannot be
            now, requests are answered without it.

    Raises:
        StateStoreError: the store, the engine or the settings are not to be had.
    """
    os.environ[DIRECTORY_VARIABLE] = str(setup.figures)
    count_in_files(place)
    engine = setup.engine()
    tokenizer = require_tokenizer(
        tokenizer_for(engine.vocabulary, setup.tokenizer), engine.vocabulary
    )
    warm_up(tokenizer)
    with (
        open_store(
            setup.store_url, flush_on_sigterm=False, absent_ok=True, broken_ok=successor
        ) as store,
        Runtime(
            engine,
            store,
            namespace=setup.access.default,
            tokenizer=tokenizer,
            model=setup.model_name,
            access_log=setup.access_log,
            flush_on_sigterm=False,
        ) as runtime,
    ):
        runtime.warm_up()
        settings = setup.settings
        streams = Streams(
            runtime, width=settings.streams, readers=settings.readers, waiting=settings.queue
        )
        try:
            return asyncio.run(_serve(setup, runtime, store, streams, tokenizer, lifeline, ready))
        finally:
            streams.close(0.0, flush_s=FLUSH_S)


async def _serve(
    setup: Setup,
    runtime: Runtime,
    store: StateStore,
    streams: Streams,
    tokenizer: Tokenizer,
    lifeline: int,
    ready: Callable[[], None],
) -> int:
    documents = Documents(store, tokenizer)
    settings = setup.settings
    written = template(settings.chat_template, tokenizer)
    service = Service(
        settings=settings,
        model_name=setup.model_name,
        runtime=runtime,
        store=store,
        streams=streams,
        access=setup.access,
        documents=documents,
        prompts=Prompts(tokenizer, written, documents, settings.max_tokens),
        instruments=Instruments(),
        figures=setup.figures,
        created=setup.created,
    )
    app = application(service, local=setup.address.is_local)
    config = uvicorn.Config(
        app,
        http=TimedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_connections(),
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_s + FLUSH_S)),
    )
    server = _Server(config, service, ready)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.end)
    loop.add_reader(lifeline, server.orphaned, lifeline)
    reporting = asyncio.create_task(_report(service, server))
    try:
        await server.serve([_listening(setup.address)])
        await server.closed()
    finally:
        reporting.cancel()
        service.close()
        if server.alone:
            shutil.rmtree(setup.figures, ignore_errors=True)
    return ENDED_BY_ITSELF if server.failed else 0


class _Server(uvicorn.Server):
    """Leaves signals to the worker, and says when it listens."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.failed = False
        self.alone = False
        self._service = service
        self._ready = ready
        self._closing: asyncio.Future[bool] | None = None

    def end(self) -> None:
        """Take no more connections and no more requests, half-sent ones included. The streams have
        their time to end, and are told when it is over.
        """
        self.should_exit = True
        if self._closing is None:
            self._service.bodies.close()
            shutdown_s = self._service.settings.shutdown_s
            close = partial(self._service.streams.close, shutdown_s, flush_s=FLUSH_S)
            self._closing = asyncio.get_running_loop().run_in_executor(None, close)

    async def closed(self) -> None:
        """Return once the streams have ended, and what they left to be stored is written."""
        if self._closing is not None:
            await self._closing

    def orphaned(self, lifeline: int) -> None:
        """The supervisor has gone; nobody else will tidy up."""
        self.alone = True
        asyncio.get_running_loop().remove_reader(lifeline)
        self.end()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Capture none: signals are the worker's."""
        yield


def _connections() -> int:
    """How many connections there are file descriptors for, once the limit is raised as far as it
    may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft >= wanted or soft < 0 else max(soft // 2, soft - OTHER_FILES)


def _listening(address: Address) -> socket.socket:
    opened = open_at(address)
    opened.setblocking(False)
    return opened


async def _report(service: Service, server: _Server) -> None:
    """Keep the gauges up to date, and end the process once its computing thread has ended."""
    computed = False
    while True:
        load = service.streams.load()
        service.instruments.ready.set(float(load.ready))
        streams = service.instruments.streams
        streams.labels("active").set(load.active)
        streams.labels("waiting").set(load.waiting)
        streams.labels("reading").set(load.reading + load.documents)
        if computed and not load.ready and not server.should_exit:
            log.error("nothing is computed in this worker any more: it ends")
            server.failed = True
            server.end()
        computed = load.ready
        await asyncio.sleep(REPORT_S)
