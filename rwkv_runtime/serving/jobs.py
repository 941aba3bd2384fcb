"""Work that several threads hand to the one that computes.

It takes one chunk at a time, first come first served, and checks between chunks whether something
else is due: a long prompt delays nobody by more than a chunk. One thread computes, because two
would share the same processors, and each would keep a pool of helpers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from statestore.errors import ClosedError

R = TypeVar("R")


class Job(Generic[R]):
    """A call that another thread makes."""

    def __init__(self, work: Callable[[], R]) -> None:
        self._work: Callable[[], R] | None = work
        self._done = threading.Event()
        self._result: R | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Make the call; what it raises is for the thread that waits."""
        try:
            assert self._work is not None
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the call was wanted
            self._error = error
        self._finish()

    def refuse(self, error: Exception) -> None:
        """Let the waiting thread know that there will be no call."""
        self._error = error
        self._finish()

    def result(self) -> R:
        """Wait for it."""
        self._done.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error
        result, self._result = self._result, None
        return result  # type: ignore[return-value]  # it was made: R, which may be None itself

    def _finish(self) -> None:
        self._work = None  # it holds a state
        self._done.set()


class Jobs:
    """A `Turns` for the threads that read, and its other side for the one that computes.

    Args:
        changed: notified when there is something to do; guards everything here.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._chunks: deque[Job[Any]] = deque()
        self._quick: deque[Job[Any]] = deque()
        self._closed = False

    def chunk(self, work: Callable[[], R]) -> R:
        """Have a chunk computed; raises what `work` raises, and `ClosedError` after `close`."""
        return self._submit(work, self._chunks)

    def quick(self, work: Callable[[], R]) -> R:
        """Have something computed that takes much less than a chunk: it goes before all chunks."""
        return self._submit(work, self._quick)

    # For the thread that computes.

    @property
    def waiting(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._chunks or self._quick)

    def run_quick(self) -> None:
        """Everything quick."""
        while (job := self._take(self._quick)) is not None:
            job.run()

    def run_chunk(self) -> None:
        """One chunk, if any waits."""
        if (job := self._take(self._chunks)) is not None:
            job.run()

    def close(self) -> None:
        """Refuse what waits and what comes."""
        with self._changed:
            self._closed = True
            left = (*self._quick, *self._chunks)
            self._quick.clear()
            self._chunks.clear()
        for job in left:
            job.refuse(_closed())

    def _take(self, line: deque[Job[Any]]) -> Job[Any] | None:
        with self._changed:
            return line.popleft() if line else None

    def _submit(self, work: Callable[[], R], line: deque[Job[Any]]) -> R:
        job = Job(work)
        with self._changed:
            if self._closed:
                raise _closed()
            line.append(job)
            self._changed.notify_all()
        return job.result()


def _closed() -> ClosedError:
    return ClosedError("nothing is computed any more: the server has closed")
