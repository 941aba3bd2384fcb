"""How the server is doing: `/healthz`, `/readyz`, `/metrics`, `/v1/store`.

The first three answer without a key, for whatever watches the server. They reveal no text, no
document and no place where states are kept; `/metrics` does reveal the namespaces' names.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from functools import reduce
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rwkv_runtime.server.instruments import exposition
from rwkv_runtime.server.service import Service
from rwkv_runtime.server.shapes import Json
from statestore.backends.tallies import Tally, tallies
from statestore.errors import BackendError
from statestore.keys import Namespace, StateKey

NOWHERE: Final = StateKey(bytes(32), 0)
FRESH_S: Final = 1.0
COST_FACTOR: Final = 20  # sums that cost a second to make are made again after twenty
#: Asked again and again by whoever watches: no line in the log while all is well.
LOOKS: Final = frozenset(("/healthz", "/readyz", "/metrics", "/v1/store"))


def routes(service: Service) -> list[Route]:
    """The endpoints over `service`."""
    sums = _Sums(service)
    place = _Place(service)

    async def healthz(request: Request) -> Response:  # noqa: ARG001 - as Starlette calls
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:  # noqa: ARG001 - as Starlette calls
        load = service.streams.load()
        body = {
            "status": "ready" if load.ready else "not ready",
            "worker": os.getpid(),
            "store": await service.quickly(place.state),
            "streams": {
                "active": load.active,
                "reading": load.reading + load.documents,
                "waiting": load.waiting,
                "width": load.width,
            },
        }
        return JSONResponse(body, 200 if load.ready else 503)

    async def metrics(request: Request) -> Response:  # noqa: ARG001 - as Starlette calls
        return Response(await service.quickly(_figures, service), media_type=CONTENT_TYPE_LATEST)

    async def store(request: Request) -> Response:
        namespace = service.namespace(request)
        return JSONResponse(await service.aside(sums.of, namespace))

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/v1/store", store),
    ]


def _figures(service: Service) -> bytes:
    for _ in range(3):
        try:
            return exposition(service.figures)
        except (struct.error, OSError, RuntimeError):  # a file that another worker is making
            time.sleep(0.01)
    return exposition(service.figures)


class _Place:
    """Whether the store answers, asked once a second at most."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._said = "ok"
        self._asked_at = float("-inf")

    def state(self) -> str:
        if time.monotonic() - self._asked_at > FRESH_S:
            self._asked_at = time.monotonic()
            try:
                self._service.store.backend.longest([NOWHERE], self._service.store.now())
                self._said = "ok"
            except BackendError:  # what is told without a key names no place; the log does
                self._said = "down, requests go on without it"
        return self._said


@dataclass(slots=True)
class _Sum:
    """Totals of one namespace's entries."""

    made_at: float
    cost_s: float
    body: Json


class _Sums:
    """Totals by namespace. They are summed anew once they are twenty times as old as summing
    takes.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._made: dict[str, _Sum] = {}

    def of(self, namespace: Namespace) -> Json:
        now = time.monotonic()
        last = self._made.get(namespace.name)
        if last is not None and now - last.made_at < max(FRESH_S, COST_FACTOR * last.cost_s):
            return last.body
        body = self._summed(namespace.name)
        made_at = time.monotonic()
        self._made[namespace.name] = _Sum(made_at, made_at - now, body)
        return body

    def _summed(self, namespace: str) -> Json:
        found = tallies(self._service.store.backend, namespace)
        total = reduce(Tally.__add__, found, Tally(namespace, ""))
        return {
            "namespace": namespace,
            "entries": total.entries,
            "bytes": total.blob_bytes,
            "hits": total.hits,
            "tokens_saved": total.tokens_saved,
            "seconds_saved": round(total.seconds_saved, 3),
        }
