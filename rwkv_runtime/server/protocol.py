"""HTTP/1.1 as uvicorn speaks it, with deadlines for request lines and headers, and for clients that
read nothing of an answer: neither keeps a connection for ever. Its refusals have the API's shape,
and what strangers send that is no request, or asks for another protocol, fills no log.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from rwkv_runtime.server.errors import ApiError

log = logging.getLogger(__name__)

HEADER_TIMEOUT_S: Final = 10.0
UNREAD_TIMEOUT_S: Final = 60.0
#: Of a request's target and headers together. What comes at once may be longer: see `app`.
HEAD_BYTES: Final = 32 << 10

_TOO_LONG: Final = f"the request's headers do not end within {HEAD_BYTES} bytes"
_NO_REQUEST: Final = "Invalid HTTP request received."  # uvicorn's warning of each

logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != _NO_REQUEST)


class TimedProtocol(H11Protocol):
    """Closes a connection whose next request has begun and does not come to its body in time, one
    on which nothing comes at all, and one whose buffers stay full of an answer.
    """

    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        if cycle is not None and not cycle.response_complete:
            self._met()
        elif self._deadline is None:
            self._expect()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request; 431 where its headers do not end."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None:  # its answer would come behind this one
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way
            self.transport.close()
            return
        error = sys.exception()
        log.debug("refused what is no request: %s", error)
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        refused = ApiError(status, _TOO_LONG if status == 431 else f"{msg} ({error})")
        body = json.dumps(refused.body).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        begun = self.conn.our_state is h11.SEND_RESPONSE
        shown = b"" if begun and self.scope["method"] == "HEAD" else body
        answer = h11.Response(status_code=status, headers=headers)
        for event in (answer, h11.Data(data=shown), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Upgrades are ignored, as HTTP lets a server: the answer is that to a plain request."""
        log.debug("an upgrade was asked for; there are none")

    def on_response_complete(self) -> None:
        """From here on uvicorn's own timeout counts, until something comes."""
        self._met()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._met()
        self._was_read()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It does."""
        self._was_read()
        super().resume_writing()

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(HEADER_TIMEOUT_S, self._late)

    def _met(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
