"""What a forked child begins anew: all that still lives, whatever one of them does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from statestore.forking import renew_in_child


class Locked:
    """A lock that another thread holds when the process forks."""

    def __init__(self) -> None:
        self.renew()
        renew_in_child(self)

    def renew(self) -> None:
        self.lock = threading.Lock()


class Failing(Locked):
    """What cannot be renewed a second time."""

    def renew(self) -> None:
        if hasattr(self, "lock"):
            raise RuntimeError("not again")
        super().renew()


def says_in_a_child(question: Callable[[], bool]) -> bool:
    process = os.fork()
    if process == 0:
        os._exit(int(question()))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1


@pytest.mark.timeout(60)
def test_a_child_gets_locks_that_nobody_holds() -> None:
    things = [Locked() for _ in range(3)]
    for thing in things:
        thing.lock.acquire()
    assert says_in_a_child(lambda: all(thing.lock.acquire(timeout=1) for thing in things))
    assert all(thing.lock.locked() for thing in things)  # the parent's are as they were


@pytest.mark.timeout(60)
def test_one_that_fails_leaves_no_other_as_it_was() -> None:
    things = [maker() for maker in (Locked, Failing, Locked, Failing, Locked)]
    for thing in things:
        thing.lock.acquire()
    sound = [thing for thing in things if not isinstance(thing, Failing)]
    assert says_in_a_child(lambda: all(thing.lock.acquire(timeout=1) for thing in sound))
