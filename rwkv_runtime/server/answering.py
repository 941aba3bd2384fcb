"""One answer, from its stream's events to its client, whole or as server-sent events.

A client that goes away gives the stream's place back: while it waits, while its prompt is read,
while its text is written. A stream's status line waits for the first event, so that what fails at
once has a status of its own; what fails later is told within the stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from rwkv_runtime.server.errors import ApiError, api_error
from rwkv_runtime.server.instruments import Instruments, Stopwatch
from rwkv_runtime.server.relay import Relay
from rwkv_runtime.server.shapes import Json, Shape, Spent
from rwkv_runtime.serving.events import Ended, Event, Failed, Piece, Started
from rwkv_runtime.serving.ticket import Ticket

HEARTBEAT_S: Final = 10.0
GONE: Final = 499  # in logs and metrics: nobody was left to read a status

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy passes each event on
]


class Answer:
    """An ASGI application that answers one request.

    Args:
        relay: the stream's events.
        ticket: gives the stream up.
        shape: how the answer is written.
        stream: as events, rather than whole.
        usage: end a stream with what it took.
        watch: runs since the request came.
        instruments: counts.
        namespace: whose request it is, for counting.
    """

    def __init__(
        self,
        relay: Relay,
        ticket: Ticket,
        shape: Shape,
        *,
        stream: bool,
        usage: bool,
        watch: Stopwatch,
        instruments: Instruments,
        namespace: str,
    ) -> None:
        self._relay = relay
        self._ticket = ticket
        self._shape = shape
        self._stream = stream
        self._usage = usage
        self._watch = watch
        self._instruments = instruments
        self._namespace = namespace
        self._spent = Spent()
        self._text_began = not shape.chat  # a reply's first spaces belong to the template
        self._first_token = False
        self._reason = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless the client goes away first."""
        work = self._answer_stream(send) if self._stream else self._answer_whole(scope, send)
        try:
            if not await unless_gone(receive, work):
                scope["answered"] = GONE
        finally:
            self._ticket.cancel()  # of a stream that has ended: nothing
            self._count(scope)

    async def _answer_whole(self, scope: Scope, send: Send) -> None:
        text = []
        while not self._reason:
            text += [self._take(event) for event in await self._relay.next()]
        body = self._shape.whole("".join(text), self._reason, self._spent)
        headers = {"x-request-id": self._shape.request_id}
        await JSONResponse(body, headers=headers)(scope, _never, send)

    async def _answer_stream(self, send: Send) -> None:
        events = await self._relay.next(HEARTBEAT_S)
        for event in events[:1]:
            if isinstance(event, Failed):
                raise api_error(event.error)
        identity = (b"x-request-id", self._shape.request_id.encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, identity]})
        opening = self._shape.opening()
        await _send_all(send, [opening] if opening else [], last=False)
        try:
            await self._pass_on(events, send)
        except ApiError as error:
            await _send_all(send, [error.body], last=True)

    async def _pass_on(self, events: list[Event], send: Send) -> None:
        while True:
            texts = [text for event in events if (text := self._take(event))]
            chunks = [self._shape.piece(text) for text in texts]
            if self._reason:
                break
            await _send_all(send, chunks, last=False, idle=not events)
            events = await self._relay.next(HEARTBEAT_S)
        chunks.append(self._shape.closing(self._reason))
        if self._usage:
            chunks.append(self._shape.usage(self._spent))
        await _send_all(send, chunks, last=True, done=True)

    def _take(self, event: Event) -> str:
        """Note an event; the text that it frees.

        Raises:
            ApiError: the stream failed, or was cut off.
        """
        if isinstance(event, Started):
            self._started(event)
            return ""
        if isinstance(event, Piece):
            self._note_first_token()
            return self._begun(event.text)
        if isinstance(event, Ended):
            self._ended(event)
            return ""
        raise api_error(event.error)

    def _started(self, event: Started) -> None:
        spent = self._spent
        spent.prompt_tokens, spent.cached_tokens = event.prompt_tokens, event.cached_tokens
        spent.prompt_s = event.seconds
        spent.queue_s = event.queued_s
        self._instruments.queue.observe(spent.queue_s)
        for source, tokens in (
            ("cached", event.cached_tokens),
            ("computed", event.computed_tokens),
        ):
            self._instruments.prompt_tokens.labels(self._namespace, source).inc(tokens)

    def _ended(self, event: Ended) -> None:
        self._note_first_token()
        self._spent.completion_tokens = event.completion_tokens
        self._spent.total_s = self._watch.seconds
        self._instruments.completion_tokens.labels(self._namespace).inc(event.completion_tokens)
        if event.reason == "cancelled":
            raise ApiError(503, "the server is shutting down: try again", retry_after_s=1)
        self._reason = event.reason

    def _note_first_token(self) -> None:
        if not self._first_token:
            self._first_token = True
            self._spent.first_token_s = self._watch.seconds
            self._instruments.first_token.observe(self._spent.first_token_s)

    def _begun(self, text: str) -> str:
        if not self._text_began:
            text = text.lstrip()
            self._text_began = bool(text)
        return text

    def _count(self, scope: Scope) -> None:
        scope["spent"] = self._spent
        self._spent.total_s = self._watch.seconds


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Await `work`, which is cancelled when the client goes away; then ``False``.

    The request's body has been read.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, gone):
            task.cancel()
            with suppress(asyncio.CancelledError, ApiError):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _never() -> Message:
    """An answer that reads nothing."""
    raise AssertionError("the request was read already")


async def _send_all(
    send: Callable[[Any], Awaitable[None]],
    chunks: list[Json],
    *,
    last: bool,
    done: bool = False,
    idle: bool = False,
) -> None:
    """Chunks as events, in one write; a comment where there was nothing for a while."""
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    if done:
        lines.append("data: [DONE]\n\n")
    if idle:
        lines.append(": still reading\n\n")
    if lines or last:
        body = "".join(lines).encode(errors="replace")
        await send({"type": "http.response.body", "body": body, "more_body": not last})
