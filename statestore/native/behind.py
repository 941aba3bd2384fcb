"""A library that is made beside a program, which goes on without it meanwhile."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

AT_END_S = 3.0  # how long a program that ends waits for a compiler, before it ends that too

Thing = TypeVar("Thing")


class Behind(Generic[Thing]):
    """What `find` finds, or `make` makes in a thread of its own. Safe for threads; no lock of it
    can be found held, neither by a signal handler nor by a forked child, which begins anew.

    Args:
        find: gives it at once, where it is there already; runs in the first call of `get`.
        make: takes longer; told by the event when to end early. Both raise nothing, and give
            ``None`` where there is none to be had.
    """

    def __init__(
        self, find: Callable[[], Thing | None], make: Callable[[threading.Event], Thing | None]
    ) -> None:
        self._find, self._make = find, make
        self._made: Thing | None = None
        self._try = _Try()
        os.register_at_fork(after_in_child=self._forget)

    def get(self) -> Thing | None:
        """The thing, if it is there by now. Never waits for what another thread makes."""
        if self._made is None and not self._try.begun.locked():
            self._begin(self._try)
        return self._made

    def wait(self, seconds: float) -> Thing | None:
        """The same, once it is known or the time is over."""
        if self.get() is None:
            self._try.settled.wait(seconds)
        return self._made

    def _begin(self, this: _Try) -> None:
        if sys.is_finalizing() or not this.begun.acquire(blocking=False):
            return
        try:
            self._made = self._find()
        except BaseException:  # a Ctrl-C: there will be none
            this.settled.set()
            raise
        if self._made is not None:
            this.settled.set()
            return
        thread = threading.Thread(
            target=self._work, args=(this,), name="statestore-native", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads are to be had
            this.settled.set()
        else:
            this.thread = thread
            atexit.register(this.end)

    def _work(self, this: _Try) -> None:
        try:
            self._made = self._make(this.stop)
        finally:
            this.settled.set()

    def _forget(self) -> None:
        """What was made stays; what another process's thread was making does not come."""
        self._try.thread = None
        self._try = _Try()


class _Try:
    """One process's."""

    def __init__(self) -> None:
        self.begun = threading.Lock()  # taken for good: once is enough
        self.stop = threading.Event()
        self.settled = threading.Event()
        self.thread: threading.Thread | None = None

    def end(self) -> None:
        """So that programs that run shortly have their library too, the next time."""
        if self.thread is not None:
            try:
                self.thread.join(AT_END_S)
            finally:  # a Ctrl-C too
                self.stop.set()
                self.thread.join(AT_END_S)
