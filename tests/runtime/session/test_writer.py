"""Puts behind the answer: order, room, failures, and every way in which a process can end."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from rwkv_runtime.session.writer import SMALL, Writer


class Gate:
    """A put that waits until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.opened.wait(60)


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.opened.set()


def test_puts_run_in_order_and_flush_waits_for_them() -> None:
    writer, done = Writer(), list[int]()
    for number in range(20):
        assert writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    writer.flush()
    assert done == list(range(20))
    writer.close()


def test_puts_without_a_state_take_no_room_and_are_bounded_all_the_same(gate: Gate) -> None:
    writer, done = Writer(depth=1, patience_s=0.0), list[int]()
    assert writer.submit(gate)
    assert gate.entered.wait(60)
    for number in range(SMALL):
        assert writer.submit(lambda number=number: done.append(number), small=True)  # type: ignore[misc]
    assert not writer.submit(lambda: done.append(-1), small=True)
    assert writer.submit(lambda: done.append(SMALL))
    assert not writer.submit(lambda: done.append(-1))
    gate.opened.set()
    writer.flush()
    assert done == list(range(SMALL + 1))
    assert writer.dropped == 2
    writer.close()


def test_a_prompts_end_finds_room_where_others_wait(gate: Gate) -> None:
    writer, done = Writer(depth=2, patience_s=0.0), list[int]()
    assert writer.submit(gate)
    assert gate.entered.wait(60)
    told = [writer.submit(lambda n=n: done.append(n), wait=True) for n in range(3, 6)]  # type: ignore[misc]
    assert told == [True, True, False]
    told = [writer.submit(lambda n=n: done.append(n), wait=False) for n in range(6, 9)]  # type: ignore[misc]
    assert told == [True, True, False]
    gate.opened.set()
    writer.flush()
    assert done == [3, 4, 6, 7]
    writer.close()


def test_a_put_that_fails_does_not_end_the_writer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    writer, done = Writer(), list[int]()

    def leave() -> None:
        raise SystemExit

    writer.submit(lambda: 1 / 0)
    writer.submit(leave)
    writer.submit(lambda: done.append(1))
    writer.flush()
    assert done == [1]
    writer.close()


def test_only_the_first_request_waits_for_a_stalled_store(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    writer = Writer(depth=1, patience_s=0.5)
    writer.submit(gate)
    assert gate.entered.wait(60)
    assert writer.submit(int)
    began = time.monotonic()
    assert not any(writer.submit(int) for _ in range(10))
    assert 0.4 < time.monotonic() - began < 2
    assert writer.dropped == 10
    gate.opened.set()
    writer.flush()
    assert writer.submit(int), "there is room again"
    writer.close()


def writers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "state-writer"}


def test_close_writes_what_waits_and_drops_what_comes_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    before = writers()
    writer, done = Writer(), list[int]()
    for number in range(4):
        writer.submit(lambda number=number: done.append(number))  # type: ignore[misc]
    assert len(writers() - before) == 1
    writer.close()
    writer.close()
    assert done == [0, 1, 2, 3]
    assert not writer.submit(lambda: done.append(4))
    writer.flush()
    assert done == [0, 1, 2, 3]
    assert not writers() - before


def test_what_was_accepted_is_written_however_close_and_submit_race(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    for _ in range(50):
        writer, done, accepted = Writer(), list[int](), list[bool]()
        threads = [
            threading.Thread(target=lambda: accepted.append(writer.submit(lambda: done.append(1))))  # noqa: B023
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        writer.close()
        for thread in threads:
            thread.join()
        writer.flush()
        assert len(done) == sum(accepted)


def test_a_put_that_ran_is_not_kept_in_memory() -> None:
    class Held:
        def __call__(self) -> None: ...

    writer, put = Writer(), Held()
    seen = weakref.ref(put)
    writer.submit(put)
    del put
    writer.flush()
    gc.collect()
    assert seen() is None
    writer.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_writes_its_own_puts_and_does_not_hang(gate: Gate) -> None:
    writer = Writer()
    writer.submit(gate)
    assert gate.entered.wait(60)
    writer.submit(int)
    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        done: list[int] = []
        writer.flush()
        writer.submit(lambda: done.append(1))
        writer.close()
        os._exit(0 if done == [1] else 1)
    deadline = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    gate.opened.set()
    writer.close()


ENDINGS = {
    "never closed": "",
    "by an exception": "1 / 0",
    "by a generator that outlives the modules": """
def holding():
    try:
        yield
    finally:
        writer.flush()
        writer.submit(int)
        writer.close()
kept = holding()
next(kept)
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_the_interpreter_writes_what_waits(ending: str) -> None:
    script = f"""
import time
from rwkv_runtime.session.writer import Writer
writer = Writer()
for number in range(3):
    writer.submit(lambda number=number: (time.sleep(0.1), print(number, flush=True)))
{ENDINGS[ending]}
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["0", "1", "2"], done.stderr
