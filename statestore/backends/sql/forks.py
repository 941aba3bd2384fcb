"""Lets database connections and ``os.fork`` live in one process.

A SQLite connection must not exist in two processes: the child inherits the library's record of
locks that the kernel never gave it, and could then write into a catalog that it does not hold. So
a fork waits until no transaction is running, closes the idle connections, and only then happens;
parent and child each connect afresh. Transactions last milliseconds, and so does the wait.

`Turnstile` counts who is inside. Opening a subprocess does not run these hooks and needs none.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_LOOK_S: Final = 0.05  # where a Ctrl-C kept somebody from telling that he left


class Turnstile:
    """Many may be inside at once, unless one asks to be alone.

    Args:
        clear_out: called when nobody is inside and somebody wants to be alone, or to fork.
    """

    def __init__(self, clear_out: Callable[[], None]) -> None:
        self._clear_out = clear_out
        self._changed = threading.Condition()
        self.inside: set[object] = set()  # visits
        self._shut = False
        with _forking:
            _turnstiles.add(self)

    def enter(self, visit: object) -> None:
        """Be one of many, until the visit is taken out of `inside` and `left` is called: which is
        done even if this is interrupted. Not reentrant; `visit` is an object of this one visit.

        Each lookup comes by here, so nothing is locked: who shuts looks who is inside after that,
        and who comes in whether it is shut after that.
        """
        self.inside.add(visit)
        while self._shut:
            self.inside.discard(visit)
            self.left()
            with self._changed:
                self._changed.wait_for(lambda: not self._shut)
            self.inside.add(visit)

    def left(self) -> None:
        """A visit is inside no longer."""
        if self._shut:  # somebody waits for it
            with self._changed:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for those inside, clear out, and keep others waiting."""
        self.shut()
        try:
            yield
        finally:
            self.open()

    def shut(self) -> None:
        """Wait for those inside, clear out, and let nobody in."""
        with self._changed:
            self._changed.wait_for(lambda: not self._shut)
            self._shut = True
        try:
            with self._changed:
                while self.inside:
                    self._changed.wait(_LOOK_S)
            self._clear_out()
        except BaseException:
            self.open()
            raise

    def open(self) -> None:
        """Let others in again."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()

    def renew(self) -> None:
        """Forget the threads that waited here: in a forked child they do not exist."""
        self._changed = threading.Condition()
        self.inside = set()
        self._shut = False


# Held from before a fork until after it: one fork at a time, and no new turnstile meanwhile.
_forking = threading.Lock()
_turnstiles: weakref.WeakSet[Turnstile] = weakref.WeakSet()
_shut_for_fork: list[Turnstile] = []


def _before_fork() -> None:
    _forking.acquire()
    for turnstile in list(_turnstiles):
        turnstile.shut()
        _shut_for_fork.append(turnstile)


def _after_fork_in_parent() -> None:
    while _shut_for_fork:
        _shut_for_fork.pop().open()
    _forking.release()


def _after_fork_in_child() -> None:
    while _shut_for_fork:
        _shut_for_fork.pop().renew()
    _forking.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
