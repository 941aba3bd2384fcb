"""What a process still does when it ends: flush what was handed over, for a bounded time.

At the interpreter's end that happens by itself. SIGTERM ends a process without it, so
`flush_on_sigterm` puts a handler in the place of the default action; then the default action
follows. Until then the program goes on; what it hands over after the signal may be lost. A server
with a handler of its own keeps it, and closes its store there.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import threading
import time
import weakref
from types import FrameType
from typing import Protocol

END_S = 10.0  # for all flushes together


class Flushable(Protocol):
    """Something with work that is not done yet."""

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return once it is done; ``False``: `timeout_s` passed."""


_known: list[weakref.ref[Flushable]] = []


def at_end(flushable: Flushable) -> None:
    """Flush this when the process ends, before what was registered earlier."""
    if not _known:
        atexit.register(flush_all)
    _known[:] = [known for known in _known if known() is not None]
    _known.append(weakref.ref(flushable))


def flush_all() -> bool:
    """Flush everything, newest first; ``False``: `END_S` passed."""
    ends = time.monotonic() + END_S
    found = [known() for known in reversed(_known)]
    waited = [each.flush(max(0.0, ends - time.monotonic())) for each in found if each is not None]
    return all(waited)


def flush_on_sigterm() -> bool:
    """Have SIGTERM flush first. ``False``: it has a handler already, or this is no main thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return False
    signal.signal(signal.SIGTERM, _flush_and_end)
    return True


def _flush_and_end(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal wants
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    # Elsewhere: the main thread lets go of what it was interrupted with, a transaction or a lock
    # that the flush may need, only once this has returned. And past `threading`, for the same
    # reason: it may have been interrupted starting a thread.
    try:
        _thread.start_new_thread(_end, (number,))
    except RuntimeError:  # no thread is to be had
        _end(number)


def _end(number: int) -> None:
    try:
        flush_all()
    finally:
        os.kill(os.getpid(), number)
