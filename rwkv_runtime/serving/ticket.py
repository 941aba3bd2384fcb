"""One request on its way, from whoever submitted it to whoever is at it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from rwkv_runtime.serving.events import Ended, Event, Failed, OnEvent, Piece, Request

log = logging.getLogger(__name__)


class CancelledError(Exception):
    """Nobody wants the answer any more; ends a reading between two chunks."""


class Ticket:
    """A request's handle. Events come one after the other, and none after the last.

    Args:
        request: what was asked.
        on_event: told what happens; it returns at once, and waits for nothing. One that raises
            cancels the request.
        on_cancel, on_end: called when it is cancelled, and after the last event.
    """

    def __init__(
        self,
        request: Request,
        on_event: OnEvent,
        on_cancel: Callable[[Ticket], None],
        on_end: Callable[[Ticket], None],
    ) -> None:
        self.request = request
        self.cancelled = False
        self.over = False
        self.pieces = 0  # that were told
        self._on_event = on_event
        self._on_cancel = on_cancel
        self._on_end = on_end
        self._speaking = threading.RLock()  # whoever listens may cancel

    def cancel(self) -> None:
        """Want no more: frees its place between two chunks, or at the next step. The last event
        says so, unless there was one; a request that was still waiting ends here and now.
        """
        if not self.cancelled:
            self.cancelled = True
            self._on_cancel(self)

    # For those who are at it.

    def check(self, done: int = 0, whole: int = 0) -> None:  # noqa: ARG002 - a `Progress`
        """Raise `CancelledError` if it was cancelled."""
        if self.cancelled:
            raise CancelledError

    def tell(self, event: Event) -> None:
        """Pass an event on; nothing after the last one."""
        with self._speaking:
            if not self.over:
                self.pieces += isinstance(event, Piece)
                self._pass(event)

    def end(self, event: Ended | Failed) -> None:
        """Pass the last event on; only the first call does."""
        with self._speaking:
            if self.over:
                return
            self.over = True
            self._pass(event)
        self._on_end(self)

    def _pass(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            log.exception("a listener failed; its request is cancelled")
            self.cancelled = True
