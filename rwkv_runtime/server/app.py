"""The ASGI application of one worker: endpoints, errors, counting, and a log without texts.

The log has one line for each answer, at INFO: method, path, status, seconds, tokens.
Never a body, a header or a query.
"""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkv_runtime.server import completions, page, reading, standing
from rwkv_runtime.server.answering import GONE
from rwkv_runtime.server.errors import ApiError, api_error
from rwkv_runtime.server.instruments import Instruments, Stopwatch
from rwkv_runtime.server.protocol import HEAD_BYTES
from rwkv_runtime.server.service import Service
from rwkv_runtime.server.shapes import Spent

log = logging.getLogger("rwkv_runtime.server.requests")

#: Of a request's path and query.
TARGET_BYTES: Final = 8 << 10


def application(service: Service, *, local: bool) -> ASGIApp:
    """The endpoints over `service`; `local`: only for requests that name this machine."""
    middleware = [Middleware(Watched, instruments=service.instruments, local=local)]
    if service.settings.cors_origins:  # outermost: a page is to read refusals too
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=list(service.settings.cors_origins),
                allow_methods=["GET", "POST", "PUT", "DELETE"],
                allow_headers=["*"],  # OpenAI's client sends a dozen of its own
                expose_headers=["Retry-After", "X-Request-Id"],
            ),
        )
    return Starlette(
        routes=[
            *completions.routes(service),
            *reading.routes(service),
            *standing.routes(service),
            *page.routes(),
        ],
        middleware=middleware,
        exception_handlers={ApiError: _refused, HTTPException: _no_such},
    )


class Watched:
    """Counts and logs every answer, turns failures into errors of the API, and refuses what other
    sites' web pages ask of a server that is for this machine alone.
    """

    def __init__(self, app: ASGIApp, instruments: Instruments, *, local: bool) -> None:
        self._app = app
        self._instruments = instruments
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watch, status = Stopwatch(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            _require_short(scope)
            if self._local:
                _require_this_machine(scope)
            await self._app(scope, receive, noting)
        except Exception as error:
            if status:  # too late for another answer: the connection breaks off
                raise
            failed = api_error(error)
            await JSONResponse(failed.body, failed.status, failed.headers)(scope, receive, noting)
        finally:
            self._note(scope, scope.get("answered") or status, watch.seconds)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        endpoint = getattr(scope.get("route"), "path", "other")
        self._instruments.requests.labels(endpoint, str(status or GONE)).inc()
        self._instruments.seconds.labels(endpoint).observe(seconds)
        spent = scope.get("spent", Spent())
        looked = status == 200 and endpoint in standing.LOOKS
        log.log(
            logging.DEBUG if looked else logging.INFO,
            "%s %s %d %.3fs prompt=%d cached=%d completion=%d",
            scope["method"], endpoint, status or GONE, seconds,
            spent.prompt_tokens, spent.cached_tokens, spent.completion_tokens,
        )  # fmt: skip


def _require_short(scope: Scope) -> None:
    """Raises ApiError, 414 or 431: what comes in one piece is not held up by the protocol."""
    target = len(scope["raw_path"]) + len(scope["query_string"])
    if target > TARGET_BYTES:
        raise ApiError(
            414, f"the path and query have {target} bytes, {TARGET_BYTES} at most: use the body"
        )
    held = target + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if held > HEAD_BYTES:
        name, value = max(scope["headers"], key=lambda header: len(header[1]))
        raise ApiError(
            431,
            f"the headers have {held} bytes, {HEAD_BYTES} at most; the longest is "
            f"{name.decode('latin-1')[:100]!r}, {len(value)} bytes: send less",
        )


def _require_this_machine(scope: Scope) -> None:
    """Raise ApiError, 403, where `Host` is not this machine's: another name leads here."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode(
        "latin-1"
    )
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    if name.lower() != "localhost" and not _is_loopback(name.strip("[]")):
        raise ApiError(
            403,
            "this server answers to localhost only: start it with --host, or let the proxy ahead "
            "of it send 'Host: localhost'",
        )


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


async def _refused(request: Request, error: Exception) -> Response:  # noqa: ARG001
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _no_such(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    message = f"{request.method} {path[:200]}: {error.detail.lower()}"
    failed = ApiError(error.status_code, message)
    return JSONResponse(failed.body, failed.status, error.headers)
