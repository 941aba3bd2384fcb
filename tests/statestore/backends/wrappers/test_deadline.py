"""Calls that end in time: what hangs is left behind, threads are used again and bounded."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore.backends.wrappers.deadline import FETCH_BYTES, Deadlines, OverdueError, Threads
from statestore.errors import ClosedError, FullError

LONG_S = 60.0


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("the place", most=4)
    yield threads
    threads.end()


def test_a_fetch_may_take_longer_the_larger_it_is() -> None:
    deadlines = Deadlines(fetch_s=2.0)
    assert deadlines.of_fetch(1000) == deadlines.of_fetch(FETCH_BYTES) == 2.0
    assert deadlines.of_fetch(10 * FETCH_BYTES) == 20.0


def test_results_and_errors_come_back(threads: Threads) -> None:
    assert threads.call("find", lambda: "found", LONG_S) == "found"
    with pytest.raises(FullError, match="no room"):
        threads.call("find", lambda: raising(FullError("no room")), LONG_S)
    assert threads.running == 1, "the second call had the first one's thread"


def raising(error: Exception) -> None:
    raise error


def test_a_call_that_hangs_is_left_behind(threads: Threads) -> None:
    released = threading.Event()
    with pytest.raises(OverdueError, match=r"the place: no answer to find within 0\.01 s"):
        threads.call("find", lambda: released.wait(LONG_S), 0.01)
    assert threads.call("find", lambda: "found", LONG_S) == "found"
    assert threads.running == 2
    released.set()


def test_beyond_the_bound_a_call_waits_within_its_deadline(threads: Threads) -> None:
    released = threading.Event()
    begun: list[int] = []
    for _ in range(4):
        with pytest.raises(OverdueError):
            threads.call("find", lambda: released.wait(LONG_S), 0.01)
    with pytest.raises(OverdueError):
        threads.call("find", lambda: begun.append(1), 0.01)
    assert threads.running == 4
    released.set()
    assert threads.call("find", lambda: "found", LONG_S) == "found"
    assert not begun, "nobody waited for it any more"
    assert threads.running == 4


def test_a_call_that_was_begun_runs_beside_the_caller(threads: Threads) -> None:
    released = threading.Event()
    answer = threads.begin("look", lambda: released.wait(LONG_S) and "found")
    released.set()
    assert answer(LONG_S) == "found"
    overdue = threads.begin("look", released.clear)
    assert overdue(LONG_S) is None
    with pytest.raises(OverdueError, match="no answer to look"):
        threads.begin("look", lambda: released.wait(LONG_S))(0.01)
    released.set()


def test_nobody_need_ask_what_came_of_a_call(threads: Threads) -> None:
    kept: list[weakref.ref[Result]] = []

    def work() -> Result:
        result = Result()
        kept.append(weakref.ref(result))
        return result

    threads.begin("look", work)
    for _ in range(1000):
        threads.call("look", lambda: None, LONG_S)
        if kept and kept[0]() is None:
            return
    pytest.fail("its result is kept")


def test_many_callers_share_the_threads(threads: Threads) -> None:
    with ThreadPoolExecutor(16) as callers:
        answers = callers.map(lambda n: threads.call("find", lambda: n, LONG_S), range(2000))
        assert list(answers) == list(range(2000))
    assert 1 <= threads.running <= 4


def test_ended_it_takes_no_calls_and_waits_for_none() -> None:
    threads = Threads("the place")
    released = threading.Event()
    threads.call("find", lambda: None, LONG_S)
    with pytest.raises(OverdueError):
        threads.call("find", lambda: released.wait(LONG_S), 0.01)
    threads.end()
    with pytest.raises(ClosedError, match="the place"):
        threads.call("find", lambda: None, LONG_S)
    released.set()


class Result:
    pass


def test_nothing_of_a_call_is_kept(threads: Threads) -> None:
    """Megabytes must not live until the next call, nor until the garbage is collected."""

    def work() -> Result:
        result = Result()
        kept.append(weakref.ref(result))
        return result

    def failing() -> None:
        result = work()
        raise FullError(str(result))

    kept: list[weakref.ref[Result]] = []
    gc.disable()
    try:
        threads.call("read", work, LONG_S)
        with pytest.raises(FullError):
            threads.call("read", failing, LONG_S)
        threads.call("read", lambda: None, LONG_S)  # the thread has let go of the one before
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


def test_an_interpreter_ends_though_a_call_hangs() -> None:
    program = (
        "import threading\n"
        "from statestore.backends.wrappers.deadline import OverdueError, Threads\n"
        "try:\n"
        "    Threads('x').call('find', threading.Event().wait, 0.01)\n"
        "except OverdueError:\n"
        "    print('left behind')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG_S, check=True
    )
    assert ended.stdout == "left behind\n"
    assert ended.stderr == ""
