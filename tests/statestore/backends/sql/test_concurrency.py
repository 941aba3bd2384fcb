"""Many processes and threads over one store, and processes that die in the middle."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection

from statestore.backends.sql import forks, totals
from statestore.backends.sql.file import open_file_backend
from statestore.backends.sql.forks import Turnstile
from statestore.backends.sql.sqlite import open_database
from statestore.entry import Change, Status
from statestore.errors import ClosedError, UnavailableError
from tests.checkout import ROOT
from tests.places.backend_places import CREATED_AT, FilePlace, a_blob, a_key, an_entry, publish
from tests.places.soundness import check_entries, named
from tests.statestore.workers.backend_worker import (
    KEYS,
    KILLS,
    PATIENCE_S,
    run_worker,
    step,
)

if TYPE_CHECKING:
    from _typeshed import TraceFunction


def check_store(place: FilePlace) -> None:
    """The catalog is sound, and all that it says is so."""
    with closing(sqlite3.connect(place.root / "catalog.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    check_entries(place)


@contextmanager
def write_lock(place: FilePlace, timeout_s: float = 5.0) -> Iterator[None]:
    """Another program holds the catalog's write lock."""
    path = place.root / "catalog.sqlite3"
    with closing(sqlite3.connect(path, timeout=timeout_s)) as connection:
        connection.isolation_level = None
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def place(tmp_path: Path) -> FilePlace:
    return FilePlace(tmp_path / "store")


def test_twelve_processes_at_once(place: FilePlace) -> None:
    done = run_worker("mix", place.root, 1, 12)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    check_store(place)
    assert place.blob_names() == named(place)


def test_sixteen_threads_over_one_backend(place: FilePlace) -> None:
    backend = open_file_backend(place.root, patience_s=PATIENCE_S)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(40):
            step(backend, dice)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    backend.close()
    check_store(place)
    assert place.blob_names() == named(place)


def test_sigkill_at_any_moment_leaves_at_most_orphans(place: FilePlace) -> None:
    orphans = 0
    for seed in range(8):
        done = run_worker("kill", place.root, seed, KILLS)
        assert done.returncode == 0, done.stderr
        check_store(place)
        orphans += len(place.blob_names() - named(place))
        backend = place.open()
        backend.sweep(time.time() + 1, grace_s=0)
        backend.close()
        assert place.blob_names() == named(place)
        check_store(place)
        if seed and orphans:
            return
    raise AssertionError("the kills never met a write")


def test_a_lock_held_too_long_is_named_and_leaves_nothing(place: FilePlace) -> None:
    backend = open_file_backend(place.root, patience_s=0.1)
    stored = an_entry(0)
    publish(backend, stored)
    with write_lock(place):
        for write in (
            lambda: publish(backend, an_entry(1)),
            lambda: backend.touch(stored, 0.0, 0.0),
            lambda: backend.delete(stored.key, "deleted"),
        ):
            with pytest.raises(UnavailableError, match=r"was busy for 0\.1 s"):
                write()
        assert backend.longest([stored.key], CREATED_AT) == stored
        assert backend.read(stored) == a_blob(stored.key)
    assert place.blob_names() == {stored.blob}
    assert publish(backend, an_entry(1))
    backend.close()


def test_a_held_lock_does_not_hold_up_a_lookup(place: FilePlace) -> None:
    """What comes with a lookup, a touch or a quarantine, is given up after a quarter second."""
    backend = open_file_backend(place.root, patience_s=PATIENCE_S)
    stored = an_entry(0)
    publish(backend, stored)
    started = time.monotonic()
    with write_lock(place):
        for write in (
            lambda: backend.touch(stored, 0.0, 0.0),
            lambda: backend.update(stored.key, Change(status=Status.QUARANTINED), blob=stored.blob),
        ):
            with pytest.raises(UnavailableError, match=r"was busy for 0\.2 s"):
                write()
    assert time.monotonic() - started < PATIENCE_S / 2
    assert backend.update(stored.key, Change(status=Status.QUARANTINED))
    backend.close()


def test_a_writer_waits_for_another(place: FilePlace) -> None:
    backend = open_file_backend(place.root, patience_s=PATIENCE_S)
    with ThreadPoolExecutor(1) as thread:
        with write_lock(place):
            outcome = thread.submit(publish, backend, an_entry(0))
            time.sleep(0.2)
            assert not outcome.done()
        assert outcome.result() is True
    backend.close()


def test_a_write_has_the_lock_before_it_reads(place: FilePlace) -> None:
    place.open().close()
    database = open_database(place.root / "catalog.sqlite3", patience_s=PATIENCE_S)

    def work(_connection: Connection) -> str:
        with (
            pytest.raises(sqlite3.OperationalError, match="locked"),
            write_lock(place, timeout_s=0),
        ):
            pass
        return "tried"

    assert database.write(work) == "tried"
    with write_lock(place, timeout_s=0):
        assert database.read(totals.usage).entries == 0
    database.close()


def test_a_store_opens_while_another_program_writes(place: FilePlace) -> None:
    place.open().close()
    with write_lock(place):
        backend = open_file_backend(place.root, patience_s=0.1)
        assert backend.usage().entries == 0
        backend.close()


def test_turning_wal_on_waits_for_a_writer(place: FilePlace) -> None:
    """SQLite reports this as busy at once, whatever the busy timeout."""
    place.root.mkdir()
    with ThreadPoolExecutor(1) as thread:
        with write_lock(place):
            opening = thread.submit(open_file_backend, place.root, patience_s=PATIENCE_S)
            time.sleep(0.2)
            assert not opening.done()
        backend = opening.result()
    assert publish(backend, an_entry(0))
    backend.close()


def test_close_waits_for_running_calls(place: FilePlace) -> None:
    backend = open_file_backend(place.root, patience_s=PATIENCE_S)
    outcomes = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        try:
            while True:
                step(backend, dice)
        except ClosedError as error:
            outcomes.append(error)

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(work, seed) for seed in range(4)]
        while backend.usage().entries < 5:
            time.sleep(0.01)
        backend.close()
        for task in running:
            task.result()
    assert len(outcomes) == 4


def test_a_fork_and_its_parent_both_go_on(place: FilePlace) -> None:
    """A process whose threads are writing forks ten children, which use the same backend object."""
    code = """
        import os, random, sys, threading
        from pathlib import Path
        from statestore.backends.sql.file import open_file_backend
        from tests.places.backend_places import an_entry, publish
        from tests.statestore.workers.backend_worker import KEYS, PATIENCE_S, step
        from tests.statestore.workers.forked import fork, succeeded

        backend = open_file_backend(Path(sys.argv[1]), patience_s=PATIENCE_S)
        stop, failures = threading.Event(), []

        def write(seed):
            dice = random.Random(seed)
            try:
                while not stop.is_set():
                    step(backend, dice)
            except BaseException as error:
                failures.append(error)

        def child(number):
            assert publish(backend, an_entry(KEYS + number, pinned=True))
            dice = random.Random(number)
            for _ in range(20):
                step(backend, dice)
            backend.close()

        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        children = [fork(lambda number=number: child(number)) for number in range(10)]
        well = succeeded(children)
        stop.set()
        for thread in threads:
            thread.join()
        backend.close()
        sys.exit(0 if well and not failures else repr(failures))
    """
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            textwrap.dedent(code),
            place.root,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_store(place)
    assert {a_key(KEYS + number).digest for number in range(10)} <= {
        row["digest"] for row in place.rows()
    }
    assert place.blob_names() == named(place)


def test_no_connection_is_open_across_a_fork(place: FilePlace) -> None:
    backend = open_file_backend(place.root)
    publish(backend, an_entry(0))
    catalog = str(place.root / "catalog.sqlite3")

    def descriptors() -> list[str]:
        links = Path("/proc/self/fd").iterdir()
        return [str(link.readlink()) for link in links if link.is_symlink()]

    assert catalog in descriptors()
    forks._before_fork()
    try:
        assert catalog not in descriptors()
    finally:
        forks._after_fork_in_parent()
    assert backend.usage().entries == 1
    assert catalog in descriptors()
    backend.close()
    assert catalog not in descriptors()


@pytest.mark.parametrize("gone", [True, False])
def test_a_store_that_was_made_anew_is_noticed(place: FilePlace, *, gone: bool) -> None:
    """By who has the old one open: nothing goes where nobody looks. With `gone`, it was met while
    there was none.
    """
    backend, stored, mine, theirs = place.open(), an_entry(0), an_entry(1), an_entry(2)
    publish(backend, stored)
    shutil.rmtree(place.root)
    if gone:
        assert backend.longest([mine.key], CREATED_AT) is None
        with pytest.raises(UnavailableError):
            publish(backend, mine)
        assert not place.root.exists()
    with closing(place.open()) as other:
        publish(other, theirs)
        assert backend.longest([stored.key, theirs.key], CREATED_AT) == theirs
        assert backend.read(theirs) == a_blob(theirs.key)
        assert publish(backend, mine)
        assert other.longest([mine.key], CREATED_AT) == mine
        assert other.usage() == backend.usage()
        backend.close()
        assert place.blob_names() == {mine.blob, theirs.blob} == named(place)
    check_store(place)


@contextmanager
def inside(turnstile: Turnstile) -> Iterator[None]:
    visit = object()
    try:
        turnstile.enter(visit)
        yield
    finally:
        turnstile.inside.discard(visit)
        turnstile.left()


def test_alone_waits_for_those_inside_and_holds_others_back() -> None:
    events: list[str] = []
    turnstile = Turnstile(lambda: events.append("cleared"))
    entered, leave = threading.Event(), threading.Event()

    def visit() -> None:
        with inside(turnstile):
            entered.set()
            leave.wait()
            events.append("left")

    def late_visit() -> None:
        with inside(turnstile):
            events.append("late")

    with ThreadPoolExecutor(3) as threads:
        visitor = threads.submit(visit)
        entered.wait()
        threading.Timer(0.1, leave.set).start()
        with turnstile.alone():
            late = threads.submit(late_visit)
            time.sleep(0.1)
            events.append("alone")
        visitor.result()
        late.result()
    assert events == ["left", "cleared", "alone", "late"]


@pytest.mark.timeout(30)
def test_an_interrupt_at_the_door_leaves_nobody_inside() -> None:
    """A Ctrl-C comes between any two lines."""

    def interrupt(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        nonlocal left
        if frame.f_code is not Turnstile.enter.__code__:
            return None
        if event == "line":
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    for line in range(4):
        turnstile, left = Turnstile(lambda: None), line
        sys.settrace(interrupt)
        try:
            with pytest.raises(KeyboardInterrupt), inside(turnstile):
                raise KeyboardInterrupt
        finally:
            sys.settrace(before)
        with turnstile.alone():
            pass


@pytest.mark.timeout(30)
def test_a_failed_clearing_out_opens_the_door_again() -> None:
    failures = [OSError("disk")]

    def clear_out() -> None:
        if failures:
            raise failures.pop()

    turnstile = Turnstile(clear_out)
    with pytest.raises(OSError, match="disk"), turnstile.alone():
        pass
    with inside(turnstile):
        pass
