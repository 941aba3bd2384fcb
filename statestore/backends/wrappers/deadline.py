"""Calls that end in time, whatever they call: on threads of their own, left behind when they hang.

A driver cannot be interrupted. So a call runs on another thread, and the caller waits until the
deadline and no longer. A thread that hangs is kept until its call returns, and the result is thrown
away. The hop costs about 20 microseconds: threads are kept for the next call, and nothing but two
locks of the system lies between question and answer.

The threads are daemons that nothing joins: an interpreter that ends does not wait for a server that
hangs. Their number is bounded; beyond it a call waits for a thread within its deadline.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from statestore.errors import ClosedError, UnavailableError

T = TypeVar("T")

#: Bytes that are fetched within `Deadlines.fetch_s`; more may take longer, in proportion.
FETCH_BYTES: Final = 32 << 20

_IDLE_S: Final = 60.0  # a thread that nobody wants for so long ends


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a request waits for a place, in seconds."""

    find_s: float = 0.25
    fetch_s: float = 2.0  # for up to `FETCH_BYTES`

    def of_fetch(self, size_bytes: int) -> float:
        """For a blob of this size."""
        return self.fetch_s * max(1.0, size_bytes / FETCH_BYTES)


class OverdueError(UnavailableError):
    """There was no answer before the deadline."""


class Threads:
    """Threads that run calls. Safe to use from several threads; not across a fork: make anew.

    Args:
        place: what is called, for messages.
        most: threads at once, those that hang included.
    """

    def __init__(self, place: str, most: int = 64) -> None:
        self._place = place
        self._most = most
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards what follows
        self._running = 0  # threads
        self._spare = 0  # threads that wait for a call, less calls that wait for a thread
        self._ended = False
        self._awaited: set[_Call] = set()

    @property
    def running(self) -> int:
        """How many threads there are."""
        return self._running

    def call(self, operation: str, work: Callable[[], T], limit_s: float) -> T:
        """The result of `work`, or what it raised.

        Raises:
            OverdueError: it took longer than `limit_s`, or was given up; it may still happen.
            UnavailableError: the system gives no more threads.
            ClosedError: `end` was called.
        """
        return self.begin(operation, work)(limit_s)

    def begin(self, operation: str, work: Callable[[], T]) -> Callable[[float], T]:
        """Run `work` beside the caller. Returns a function that does the rest of `call`; it may be
        called once or never.

        Raises as `call`, but for `OverdueError`.
        """
        call = _Call(work)
        self._hand_over(call)
        return partial(self._outcome, operation, call)

    def _outcome(self, operation: str, call: _Call, limit_s: float) -> Any:  # noqa: ANN401 - of `work`
        try:
            if not call.ended.acquire(timeout=limit_s):
                raise OverdueError(f"{self._place}: no answer to {operation} within {limit_s:g} s")
            return call.outcome()
        finally:
            call.wanted = False
            with self._lock:
                self._awaited.discard(call)

    def give_up(self) -> None:
        """Tell every caller that waits now that there is no answer."""
        with self._lock:
            awaited = list(self._awaited)
        for call in awaited:
            call.give_up(OverdueError(f"{self._place}: given up, it answers nobody"))

    def end(self) -> None:
        """Let every thread end, those that hang once their call returns. Waits for none."""
        with self._lock:
            self._ended = True
            for _ in range(self._running):
                self._calls.put(None)

    def _hand_over(self, call: _Call) -> None:
        with self._lock:
            if self._ended:
                raise ClosedError(f"{self._place} was closed")
            if self._spare <= 0 and self._running < self._most:
                self._start()
            self._spare -= 1
            self._awaited.add(call)
            self._calls.put(call)

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="store-call", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise UnavailableError(f"{self._place}: {error}: too many threads") from error
        self._running += 1
        self._spare += 1

    def _serve(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=_IDLE_S)
            except Empty:
                if self._may_go():
                    return
                continue
            if call is None:
                return
            call.run()
            with self._lock:
                self._awaited.discard(call)  # nobody may ask for what came of it
                self._spare += 1  # before the caller goes on: its next call finds this thread
            call.end()
            del call  # it holds a state, and the next one may be long in coming

    def _may_go(self) -> bool:
        with self._lock:
            idle = self._spare > 0
            if idle:
                self._spare -= 1
                self._running -= 1
            return idle


class _Call:
    """One call and what came of it."""

    __slots__ = ("done", "ended", "error", "given_up", "result", "wanted", "work")

    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work
        self.wanted = True
        self.result: object = None
        self.error: BaseException | None = None
        self.done = False
        self.given_up: OverdueError | None = None
        self.ended = threading.Lock()
        self.ended.acquire()

    def run(self) -> None:
        """On the other thread. A call that nobody waits for any more is not begun."""
        if not self.wanted:
            return
        try:
            self.result = self.work()
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            self.error = error
        self.done = True

    def give_up(self, why: OverdueError) -> None:
        """Let the caller go on without an answer, unless it has come."""
        self.given_up = why
        self.end()

    def end(self) -> None:
        """Wake the caller; it may be awake already."""
        with suppress(RuntimeError):
            self.ended.release()

    def outcome(self) -> object:
        """The result, or the error that was raised. To be called once: an error is referred to by
        its own traceback, and would keep what it holds until the garbage is collected.
        """
        error, self.error = self.error if self.done else self.given_up, None
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error
