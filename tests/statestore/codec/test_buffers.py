"""Buffers that are used again: never while somebody can still see them."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore import buffers
from statestore.buffers import ALIGNMENT, LEAST_BYTES, Pool

if TYPE_CHECKING:
    from _typeshed import TraceFunction


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


@pytest.mark.parametrize("size", [0, 1, 63, 4096, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 1])
def test_a_buffer_is_writable_aligned_and_of_its_size(size: int) -> None:
    view = Pool().take(size)
    assert (len(view), view.readonly, view.format) == (size, False, "B")
    assert size == 0 or address(view) % ALIGNMENT == 0
    view[:] = b"x" * size


def test_what_nobody_looks_at_is_used_again() -> None:
    pool = Pool()
    view = pool.take(4 * LEAST_BYTES)
    first = address(view)
    del view
    gc.collect()
    assert pool.idle_bytes >= 4 * LEAST_BYTES
    assert address(pool.take(3 * LEAST_BYTES)) == first


def test_of_equal_ones_the_last_that_came_back_is_used_first() -> None:
    pool = Pool()
    views = [pool.take(2 * LEAST_BYTES) for _ in range(3)]
    places = [address(view) for view in views]
    for _ in range(3):
        views.pop(0)
        gc.collect()
    assert address(pool.take(2 * LEAST_BYTES)) == places[-1]


@pytest.mark.parametrize(
    "look",
    [
        lambda view: view[5:10],
        lambda view: view.toreadonly()[-1:],
        lambda view: np.frombuffer(view, np.uint8)[7:9],
        lambda view: np.frombuffer(view, "<u4").reshape(2, -1)[1:].data,
        lambda view: view.obj[1:][2:].view("<u1"),
    ],
    ids=["slice", "readonly", "array", "array's view", "its owner's view"],
)
def test_a_view_of_any_kind_keeps_a_buffer(look: object) -> None:
    pool = Pool()
    view = pool.take(2 * LEAST_BYTES)
    kept = look(view)  # type: ignore[operator]
    del view
    gc.collect()
    assert pool.idle_bytes == 0
    other = pool.take(2 * LEAST_BYTES)
    other[:] = b"\xff" * len(other)
    del kept, other
    gc.collect()
    assert pool.idle_bytes >= 4 * LEAST_BYTES


def test_what_idles_is_bounded_and_much_too_large_is_not_taken() -> None:
    pool = Pool(kept_bytes=5 * LEAST_BYTES)
    views = [pool.take(2 * LEAST_BYTES) for _ in range(4)]
    del views
    gc.collect()
    assert 4 * LEAST_BYTES <= pool.idle_bytes <= 5 * LEAST_BYTES
    view = pool.take(6 * LEAST_BYTES)
    del view
    gc.collect()
    assert pool.idle_bytes <= 5 * LEAST_BYTES
    idle = pool.idle_bytes
    small = pool.take(LEAST_BYTES - 1)
    assert pool.idle_bytes == idle
    del small


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=20))
def test_no_two_buffers_overlap(steps: list[tuple[int, bool]]) -> None:
    pool = Pool()
    held: list[memoryview] = []
    for megabytes, drop in steps:
        held.append(pool.take(megabytes * LEAST_BYTES))
        spans = sorted((address(view), address(view) + len(view)) for view in held)
        assert all(one[1] <= other[0] for one, other in itertools.pairwise(spans))
        if drop:
            held.pop(0)


def test_threads_never_get_each_others_buffers() -> None:
    wrong: list[int] = []

    def work(mark: int) -> None:
        for _ in range(40):
            array = np.frombuffer(buffers.take(LEAST_BYTES), np.uint8)
            array[:] = mark
            if not (array == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("idle", [1, 3])
def test_who_comes_in_the_midst_of_a_take_gets_another_buffer(idle: int) -> None:
    """A signal handler or a finaliser runs between any two lines of the thread that it meets."""
    held: list[memoryview] = []
    meetings = 0

    def meet(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        nonlocal meetings
        if frame.f_code.co_filename != buffers.__file__:
            return None
        if event == "line":
            sys.settrace(None)
            held.append(pool.take(LEAST_BYTES))
            meetings += 1
            if meetings % 2:  # one that goes again at once, into what is being gone through
                held.pop()
            sys.settrace(meet)
        return meet

    before = sys.gettrace()
    for skip in range(12):
        pool = Pool()
        views = [pool.take(LEAST_BYTES) for _ in range(idle)]
        views.clear()
        meetings = skip
        sys.settrace(meet)
        try:
            mine = pool.take(LEAST_BYTES)
        finally:
            sys.settrace(before)
        assert meetings > skip
        places = [address(view) for view in [mine, *held]]
        assert len(set(places)) == len(places)
        held.clear()


def test_a_forked_child_takes_and_gives_back() -> None:
    """Also while other threads of the parent are in the midst of it."""
    pool = Pool()
    view = pool.take(LEAST_BYTES)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            pool.take(LEAST_BYTES)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                del view
                os._exit(0 if len(pool.take(LEAST_BYTES)) == LEAST_BYTES else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        done.set()
        for thread in threads:
            thread.join()
