"""What is made beside a program: never waited for, once, and ended with it."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from statestore.native.behind import Behind

HANG_S = 60.0


def nothing() -> str | None:
    return None


def test_what_is_there_is_given_at_once() -> None:
    asked: list[int] = []

    def find() -> str:
        asked.append(1)
        return "found"

    behind = Behind(find, lambda _: "made")
    assert [behind.get() for _ in range(3)] == ["found"] * 3
    assert behind.wait(0) == "found"
    assert asked == [1]


def test_a_program_goes_on_without_what_is_being_made() -> None:
    go = threading.Event()

    def make(stop: threading.Event) -> str:
        assert go.wait(HANG_S)
        return "made"

    behind = Behind(nothing, make)
    assert behind.get() is None
    assert behind.wait(0) is None
    go.set()
    assert behind.wait(HANG_S) == "made"
    assert behind.get() == "made"


def test_what_cannot_be_had_is_asked_for_once() -> None:
    made: list[int] = []
    behind = Behind(nothing, lambda _: made.append(1))
    assert behind.wait(HANG_S) is None
    assert [behind.get(), behind.wait(0)] == [None, None]
    assert made == [1]


def test_who_comes_while_another_looks_goes_on_without() -> None:
    looking, go = threading.Event(), threading.Event()

    def find() -> str:
        looking.set()
        assert go.wait(HANG_S)
        return "found"

    behind = Behind(find, lambda _: None)
    first = threading.Thread(target=behind.get)
    first.start()
    assert looking.wait(HANG_S)
    assert behind.get() is None
    go.set()
    first.join(HANG_S)
    assert behind.get() == "found"


def test_who_interrupts_the_looking_is_heard_and_nobody_waits_for_it_after() -> None:
    def find() -> str:
        raise KeyboardInterrupt

    behind = Behind(find, lambda _: "made")
    with pytest.raises(KeyboardInterrupt):
        behind.get()
    assert behind.wait(HANG_S * HANG_S) is None


PROGRAM = """
import os, sys, threading, time
from statestore.native.behind import Behind
begun = threading.Event()
def make(stop):
    begun.set()
    stop.wait()
    print("stopped", flush=True)
behind = Behind(lambda: None, make)
behind.get()
begun.wait()
"""


def output(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_that_ends_stops_the_making() -> None:
    assert output(PROGRAM) == "stopped\n"


def test_a_program_that_ends_waits_a_little_for_what_is_nearly_made() -> None:
    ended = "def make(stop):\n    begun.set()\n    print(stop.wait(0.2), flush=True)\n"
    assert output(PROGRAM.replace("behind = ", ended + "behind = ")) == "False\n"


INTERRUPTED = (
    PROGRAM
    + """
import atexit, signal
import statestore.native.behind
statestore.native.behind.AT_END_S = 1000
def interrupt():
    time.sleep(0.2)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
atexit.register(threading.Thread(target=interrupt, daemon=True).start)
"""
)


def test_who_interrupts_the_end_stops_the_making() -> None:
    assert output(INTERRUPTED) == "stopped\n"


FORKING = (
    PROGRAM
    + """
if os.fork() == 0:
    behind._make = lambda stop: "the child's own"
    print(behind.wait(60), flush=True)
    os._exit(0)
os.wait()
"""
)


def test_a_forked_child_makes_its_own() -> None:
    assert output(FORKING) == "the child's own\nstopped\n"


def test_a_forked_child_has_what_was_made_before() -> None:
    program = FORKING.replace("lambda: None, make", "lambda: 'found', make").replace(
        "begun.wait()\n", ""
    )
    assert output(program) == "found\n"
