"""Request bodies, bounded before anything is made of them: each one's size and time, and the bytes
of all that are held at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from rwkv_runtime.server.errors import ApiError, api_error, invalid
from statestore.errors import ClosedError


class Bodies:
    """The bodies that a worker holds. For one event loop.

    Args:
        held_bytes: of all bodies together.
        timeout_s: for one to come in.
    """

    def __init__(self, held_bytes: int, timeout_s: float) -> None:
        self._room = held_bytes
        self._timeout_s = timeout_s
        self._closed = False
        self._coming: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def read(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """The body, which counts as held until the block ends.

        Raises:
            ApiError: 413, 415, 408, 429; 400 for a client that goes away, 503 after `close`.
        """
        self._check_headers(request, limit)
        body = bytearray()
        try:
            try:
                async with self._in_time():
                    async for part in request.stream():
                        self._take(body, part, limit)
            except TimeoutError:
                raise self._late() from None
            except ClientDisconnect:
                raise invalid(None, "the client went away within the request's body") from None
            yield bytes(body)
        finally:
            self._room += len(body)

    def close(self) -> None:
        """Wait for none any more: what they ask for would not be done."""
        self._closed = True
        for timeout in self._coming:
            if not timeout.expired():
                timeout.reschedule(0.0)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        async with asyncio.timeout(0.0 if self._closed else self._timeout_s) as timeout:
            self._coming.add(timeout)
            try:
                yield
            finally:
                self._coming.discard(timeout)

    def _late(self) -> ApiError:
        if self._closed:
            return api_error(ClosedError("no body is waited for: the server has closed"))
        return ApiError(408, f"the request's body did not come within {self._timeout_s:g} s")

    def _take(self, body: bytearray, part: bytes, limit: int) -> None:
        if len(body) + len(part) > limit:
            raise _too_large(limit)
        if len(part) > self._room:
            raise ApiError(
                429, "too many large requests at once: try again", code="bodies", retry_after_s=1
            )
        self._room -= len(part)
        body += part

    def _check_headers(self, request: Request, limit: int) -> None:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise ApiError(415, "compressed bodies are not read: send it as it is")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit)


def require_json(request: Request) -> None:
    """A web page may send a form or plain text to any address without being asked; JSON not.

    Raises:
        ApiError: 415.
    """
    if media_type(request) != "application/json":
        raise ApiError(415, "the body is JSON: send 'Content-Type: application/json'")


def media_type(request: Request) -> str:
    """Of the body, without parameters; "" where none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes, the most that is taken here")
