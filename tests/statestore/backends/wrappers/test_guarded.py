"""Deadlines and breakers around a real place that fails on command."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from statestore import PutOutcome, open_store, settings
from statestore.backends.base import Backend
from statestore.backends.leases import Leases, Outcome
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers import guarded as guarded_module
from statestore.backends.wrappers.breaker import Circuit, Pauses
from statestore.backends.wrappers.deadline import Deadlines
from statestore.backends.wrappers.faulty import (
    Chance,
    Delay,
    Fail,
    Fault,
    Faulty,
    Hang,
    Lose,
    Operation,
)
from statestore.backends.wrappers.guarded import Guarded
from statestore.entry import Change, EntryFilter, Status
from statestore.errors import (
    BusyError,
    ClosedError,
    CorruptError,
    FullError,
    SettingsError,
    UnavailableError,
)
from statestore.metrics import Metrics
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish
from tests.places.states import put

NOW = CREATED_AT + 10_000
HANG_S = 30.0  # bounds a test that would hang
SOON = Pauses(0.02, 0.1)
NEVER = Pauses(3600.0, 3600.0)  # no probe comes in the test's time
DOWN = Fail(UnavailableError("down"))
CLOSED, OPEN = Circuit.CLOSED, Circuit.OPEN
ENTRY = an_entry(0)

CALLS: dict[Operation, Callable[[Backend], Any]] = {
    "longest": lambda backend: backend.longest([ENTRY.key], NOW),
    "read": lambda backend: backend.read(ENTRY),
    "publish": lambda backend: publish(backend, an_entry(1)),
    "touch": lambda backend: backend.touch(ENTRY, NOW, 0.0),
    "update": lambda backend: backend.update(ENTRY.key, Change(status=Status.QUARANTINED)),
    "acquire": lambda backend: leases(backend).acquire(a_key(7), "me", 5.0),
    "renew": lambda backend: leases(backend).renew(a_key(7), "me", 5.0),
    "release": lambda backend: leases(backend).release(a_key(7), "me", Outcome.PUBLISHED),
    "wait": lambda backend: leases(backend).wait(a_key(7), 0.001),
}
READS: tuple[Operation, ...] = ("longest", "read")
WRITES: tuple[Operation, ...] = (
    "publish",
    "touch",
    "update",
    "acquire",
    "renew",
    "release",
    "wait",
)
OPERATORS: dict[Operation, Callable[[Backend], Any]] = {
    "entries": lambda backend: list(backend.entries(EntryFilter())),
    "departed": lambda backend: backend.departed([ENTRY.key]),
    "usage": lambda backend: backend.usage(),
    "evict": lambda backend: backend.evict(10**9, NOW),
    "sweep": lambda backend: backend.sweep(NOW, 3600.0),
    "delete": lambda backend: backend.delete(ENTRY.key, "deleted"),
}


def leases(backend: Backend) -> Leases:
    assert backend.leases is not None
    return backend.leases


@pytest.fixture
def faulty() -> Faulty:
    backend = MemoryBackend()
    publish(backend, ENTRY)
    return Faulty(backend)


@pytest.fixture
def guard(faulty: Faulty) -> Iterator[Callable[..., Guarded]]:
    """Makes guards around the place; generous deadlines, no probes, unless it is told."""
    made: list[Guarded] = []

    def make(find_s: float = HANG_S, fetch_s: float = HANG_S, pauses: Pauses = NEVER) -> Guarded:
        made.append(Guarded(faulty, Deadlines(find_s, fetch_s), pauses=pauses))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_S
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


@pytest.mark.parametrize("operation", [*CALLS, *OPERATORS])
def test_a_sound_place_is_as_it_is(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation
) -> None:
    call = {**CALLS, **OPERATORS}[operation]
    assert call(guard()) == call(faulty) or operation in ("publish", "delete")
    assert guard().url == faulty.url


@pytest.mark.parametrize("operation", READS)
def test_a_read_that_hangs_costs_its_deadline_once(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation
) -> None:
    hang = Hang()
    faulty.faults = (Fault((operation,), hang),)
    guarded = guard(0.02, 0.02)
    with pytest.raises(UnavailableError, match=rf"no answer to {operation} within 0\.02 s"):
        CALLS[operation](guarded)
    assert guarded.circuits == (OPEN, CLOSED)
    for call in CALLS.values():
        with pytest.raises(UnavailableError, match=r"left alone for \d+\.\d s more: .*no answer"):
            call(guarded)
    assert faulty.struck == {operation: 1}, "it was asked again"
    hang.released.set()


def test_a_large_fetch_may_take_longer(guard: Callable[..., Guarded], faulty: Faulty) -> None:
    hang = Hang()
    faulty.faults = (Fault(("read",), hang),)
    with pytest.raises(UnavailableError, match=r"0\.0125 s"):
        guard(fetch_s=0.01).read(an_entry(2, blob_bytes=40 << 20))
    hang.released.set()


@pytest.mark.parametrize("operation", ["acquire", "renew", "release"])
def test_a_lease_may_take_as_long_as_a_fetch(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation
) -> None:
    """It comes before seconds of computing: a server that is merely busy is waited for."""
    faulty.faults = (Fault((operation,), Delay(0.05)),)
    guarded = guard(find_s=0.01)
    CALLS[operation](guarded)
    assert guarded.circuits == (CLOSED, CLOSED)


def test_a_probe_behind_the_requests_closes_it(
    guard: Callable[..., Guarded], faulty: Faulty
) -> None:
    faulty.faults = (Fault(("longest",), DOWN),)
    guarded = guard(pauses=SOON)
    with pytest.raises(UnavailableError, match="down"):
        guarded.longest([ENTRY.key], NOW)
    wait_until(lambda: faulty.struck["longest"] > 3)
    assert guarded.circuits[0] is not CLOSED
    assert faulty.struck.total() == faulty.struck["longest"], "what is asked is what failed"
    faulty.faults = ()
    wait_until(lambda: guarded.circuits == (CLOSED, CLOSED))
    found = guarded.longest([ENTRY.key], NOW)
    assert found == ENTRY


def test_those_who_wait_are_told_once_a_probe_has_failed(
    guard: Callable[..., Guarded], faulty: Faulty
) -> None:
    """The deadline of a large fetch is long, and by then two others have had no answer."""
    fetch, lookups = Hang(), Hang()
    faulty.faults = (Fault(("read",), fetch), Fault(("longest",), lookups))
    guarded = guard(find_s=0.02, fetch_s=10 * HANG_S, pauses=SOON)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(CALLS["read"], guarded)
        assert fetch.met.wait(HANG_S)
        with pytest.raises(UnavailableError, match="no answer"):
            CALLS["longest"](guarded)
        with pytest.raises(UnavailableError, match="given up, it answers nobody"):
            reading.result(HANG_S)
        for hang in (fetch, lookups):
            hang.released.set()
    faulty.faults = ()
    wait_until(lambda: guarded.circuits == (CLOSED, CLOSED))
    assert CALLS["read"](guarded) is not None


class Once:
    """One call, and no other."""

    def __init__(self) -> None:
        self._calls = count()

    def __call__(self) -> bool:
        return next(self._calls) == 0


@pytest.mark.parametrize("operation", ["longest", "read", "publish", "touch", "renew", "release"])
def test_a_broken_connection_costs_no_pause(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation
) -> None:
    faulty.faults = (Fault((operation,), DOWN, Once()),)
    guarded = guard(pauses=NEVER)
    with pytest.raises(UnavailableError, match="down"):
        CALLS[operation](guarded)
    if operation in READS:
        wait_until(lambda: guarded.circuits == (CLOSED, CLOSED))
    CALLS[operation](guarded)
    assert guarded.circuits == (CLOSED, CLOSED)


def test_it_opens_and_closes_again_and_again(guard: Callable[..., Guarded], faulty: Faulty) -> None:
    guarded = guard(pauses=SOON)
    for operation in READS * 3:
        faulty.faults = (Fault((operation,), DOWN),)
        with pytest.raises(UnavailableError):
            CALLS[operation](guarded)
        faulty.faults = ()
        wait_until(lambda: guarded.circuits[0] is CLOSED)
    assert guarded.metrics.value("breaker_openings_total", place=faulty.url, calls="all") == 6


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("answer", [FullError("full"), CorruptError("a bad sector")])
def test_an_answer_opens_nothing(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation, answer: Any
) -> None:
    faulty.faults = (Fault((operation,), Fail(answer)),)
    guarded = guard()
    with pytest.raises(type(answer)):
        CALLS[operation](guarded)
    assert guarded.circuits == (CLOSED, CLOSED)


@pytest.mark.parametrize("operation", WRITES)
def test_a_place_that_takes_no_writes_is_still_read(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation
) -> None:
    faulty.faults = (Fault((operation, "publish"), DOWN),)
    guarded = guard()
    for call in (operation, "publish"):  # the second one decides
        with pytest.raises(UnavailableError, match="down"):
            CALLS[call](guarded)  # type: ignore[index]
    assert guarded.circuits == (CLOSED, OPEN)
    for read in READS:
        assert CALLS[read](guarded)
    for write in WRITES:
        with pytest.raises(UnavailableError, match="left alone"):
            CALLS[write](guarded)
    assert faulty.struck.total() == 2


@pytest.mark.parametrize("operation", WRITES)
def test_a_write_that_nobody_waits_for_is_the_probe(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation
) -> None:
    faulty.faults = (Fault(("publish",), DOWN),)
    guarded = guard(pauses=Pauses(0.0, 0.0))  # a probe is let in at any time
    with pytest.raises(UnavailableError, match="down"):
        CALLS["publish"](guarded)
    if operation in ("update", "acquire", "wait"):
        with pytest.raises(UnavailableError, match="left alone"):
            CALLS[operation](guarded)
        return
    with pytest.raises(UnavailableError, match="down"):
        CALLS["publish"](guarded)
    assert guarded.circuits == (CLOSED, OPEN)
    faulty.faults = ()
    CALLS[operation](guarded)
    assert guarded.circuits == (CLOSED, CLOSED)


def test_a_write_that_ends_otherwise_leaves_the_probe_to_the_next(
    guard: Callable[..., Guarded], faulty: Faulty
) -> None:
    faulty.faults = (Fault(("publish",), DOWN),)
    guarded = guard(pauses=Pauses(0.0, 0.0))
    with pytest.raises(UnavailableError):
        CALLS["publish"](guarded)
    faulty.faults = (Fault(("publish",), Fail(FullError("full"))),)
    for _ in range(2):
        with pytest.raises(FullError):
            CALLS["publish"](guarded)
        assert guarded.circuits == (CLOSED, OPEN)


def test_a_write_that_fails_late_has_the_place_probed(
    guard: Callable[..., Guarded], faulty: Faulty
) -> None:
    """As a put to a paused server does: no lookup has to find out, and nothing is lost if all is
    well.
    """
    hang = Hang()
    faulty.faults = (
        Fault(("publish",), Delay(0.02)),
        Fault(("publish",), DOWN),
        Fault(("usage",), hang),
    )
    guarded = guard(find_s=0.02, pauses=SOON)
    with pytest.raises(UnavailableError, match="down"):
        CALLS["publish"](guarded)
    assert hang.met.wait(HANG_S)
    with pytest.raises(UnavailableError, match="left alone"):
        CALLS["longest"](guarded)
    assert not faulty.struck["longest"]
    hang.released.set()
    wait_until(lambda: guarded.circuits[0] is CLOSED)


def test_a_blob_is_read_on_the_caller_s_thread(
    guard: Callable[..., Guarded], faulty: Faulty
) -> None:
    """Its buffers are the caller's: nothing may read them after the call."""
    seen: list[int] = []

    def note(work: Callable[[], object]) -> object:
        seen.append(threading.get_ident())
        return work()

    faulty.faults = (Fault(("publish", "longest"), note),)
    guarded = guard()
    assert publish(guarded, an_entry(1))
    guarded.longest([ENTRY.key], NOW)
    assert seen[0] == threading.get_ident() != seen[1]


@pytest.mark.parametrize("operation", OPERATORS)
def test_operators_are_told_the_truth(
    guard: Callable[..., Guarded], faulty: Faulty, operation: Operation
) -> None:
    faulty.faults = (Fault(("longest", "publish"), DOWN), Fault((operation,), Delay(0.05)))
    guarded = guard(find_s=0.01, fetch_s=0.01)
    for call in ("publish", "longest"):
        with pytest.raises(UnavailableError):
            CALLS[call](guarded)  # type: ignore[index]
    wait_until(lambda: guarded.circuits == (OPEN, OPEN))
    OPERATORS[operation](guarded)  # neither refused nor hurried
    faulty.faults = (Fault((operation,), Fail(UnavailableError("the truth"))),)
    with pytest.raises(UnavailableError, match="the truth"):
        OPERATORS[operation](guarded)


def test_an_answer_that_got_lost_is_a_failure(
    guard: Callable[..., Guarded], faulty: Faulty
) -> None:
    faulty.faults = (Fault(("publish",), Lose(UnavailableError("connection reset"))),)
    guarded = guard()
    with pytest.raises(UnavailableError, match="reset"):
        CALLS["publish"](guarded)
    assert guarded.circuits == (CLOSED, OPEN)
    assert faulty.longest([a_key(1)], NOW) is not None, "it had happened"


def test_what_it_does_is_counted(faulty: Faulty) -> None:
    metrics = Metrics()
    place: dict[str, str] = {"place": faulty.url}
    guarded = Guarded(faulty, Deadlines(HANG_S, HANG_S), pauses=NEVER, metrics=metrics)
    assert metrics.value("breaker_state", **place, calls="all") == 0
    faulty.faults = (Fault(("longest",), DOWN),)
    for _ in range(3):
        with pytest.raises(UnavailableError):
            CALLS["longest"](guarded)
    with pytest.raises(UnavailableError):
        CALLS["publish"](guarded)
    wait_until(lambda: metrics.value("breaker_state", **place, calls="all") == 2)
    assert metrics.value("breaker_state", **place, calls="writes") == 0
    assert metrics.value("breaker_openings_total", **place, calls="all") == 1
    assert metrics.value("short_circuited_total", operation="longest") == 2
    assert metrics.value("short_circuited_total", operation="publish") == 1
    guarded.close()


def test_closing_waits_for_no_call_that_hangs(faulty: Faulty) -> None:
    hang = Hang()
    faulty.faults = (Fault(("longest",), hang),)
    guarded = Guarded(faulty, Deadlines(0.01, 0.01), pauses=Pauses(0.001, 0.001))
    with pytest.raises(UnavailableError):
        CALLS["longest"](guarded)
    guarded.close()
    guarded.close()
    for call in CALLS.values():
        with pytest.raises(ClosedError):
            call(guarded)
    hang.released.set()
    wait_until(lambda: not own_threads())


def test_a_catalog_that_others_write_to_is_not_down(tmp_path: Path) -> None:
    """A hit that could not be noted in a moment, or a lease, keeps no put from waiting its turn."""
    with open_store(f"{tmp_path.as_uri()}?find_ms=5000") as store:
        guard, catalog = store.backend, tmp_path / "catalog.sqlite3"
        assert isinstance(guard, Guarded)
        publish(guard, ENTRY)
        with closing(sqlite3.connect(catalog, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for operation in ("touch", "update", "acquire"):
                with pytest.raises(BusyError, match="another process holds it"):
                    CALLS[operation](guard)  # type: ignore[index]
            other.execute("ROLLBACK")
        assert guard.circuits == (CLOSED, CLOSED)
        assert publish(guard, an_entry(1))
        for call in CALLS.values():
            call(guard)


class ClosesLate(Wrapper):
    """A place that cannot be closed while one of its calls hangs."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.released = threading.Event()
        self.closed = threading.Event()

    def close(self) -> None:
        self.released.wait()
        self.inner.close()
        self.closed.set()


def test_closing_waits_for_no_driver_that_hangs(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guarded_module, "_CLOSE_S", 0.02)
    late = ClosesLate(faulty)
    Guarded(late).close()
    assert "its connections close when it answers" in caplog.text
    late.released.set()
    assert late.closed.wait(HANG_S)


def own_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name in ("store-call", "store-probe")]


def test_a_forked_child_begins_anew(guard: Callable[..., Guarded], faulty: Faulty) -> None:
    guarded = guard()
    faulty.faults = (Fault(("longest",), DOWN),)
    with pytest.raises(UnavailableError):
        CALLS["longest"](guarded)
    child = os.fork()
    if child == 0:
        faulty.faults = ()
        status = 1
        try:
            CALLS["longest"](guarded)
            status = 0 if guarded.circuits == (CLOSED, CLOSED) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    wait_until(lambda: guarded.circuits == (OPEN, CLOSED))


def test_many_threads_and_faults_at_random(guard: Callable[..., Guarded], faulty: Faulty) -> None:
    """Never a wrong answer, and all is well again when the place is."""
    guarded = guard(find_s=0.05, fetch_s=0.05, pauses=SOON)
    entries = [an_entry(number) for number in range(20)]
    for entry in entries:
        publish(faulty, entry)
    stored = {entry.key: faulty.longest([entry.key], NOW) for entry in entries}
    faulty.faults = (
        Fault(("longest", "read", "usage"), DOWN, Chance(0.05, 1)),
        Fault(("longest", "read", "publish", "touch"), Delay(0.1), Chance(0.02, 2)),
        Fault(("publish", "touch"), DOWN, Chance(0.1, 3)),
    )

    def work(number: int) -> int:
        entry = entries[number % len(entries)]
        try:
            found = guarded.longest([entry.key], NOW)
            assert found is not None
            assert found.blob == stored[entry.key].blob  # type: ignore[union-attr]
            assert guarded.read(found) == a_blob(entry.key)
            publish(guarded, an_entry(100 + number))
            guarded.touch(found, NOW, 0.0)
        except UnavailableError:
            time.sleep(0.005)  # as computing takes time, too
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert 0 < sum(pool.map(work, range(400))) < 400
    faulty.faults = ()

    def well() -> bool:
        if guarded.circuits[0] is CLOSED:
            work(0)
        return guarded.circuits == (CLOSED, CLOSED)

    wait_until(well)
    assert len(own_threads()) <= 64


def test_the_options_of_a_url(tmp_path: Path) -> None:
    near, far = f"{tmp_path.as_uri()}/store", "redis://127.0.0.1:1/0"
    guards = {
        near: False,
        f"{near}?find_ms=100": True,
        f"{near}?fetch_ms=100": True,
        f"{near}?find_ms=0": False,
        far: True,
        f"{far}?find_ms=100&fetch_ms=200": True,
        f"{far}?find_ms=0": False,
    }
    for url, expected in guards.items():
        with open_store(url) as store:
            assert isinstance(store.backend, Guarded) == expected, url


def test_what_a_budget_asks_has_the_deadline_of_the_call(
    faulty: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals are asked for by a put and a touch, and no operator waits for those."""
    hang = Hang()
    faulty.faults = (Fault(("usage",), hang),)
    monkeypatch.setitem(settings._OPENERS, "memory", lambda _: faulty)
    with open_store("memory:?budget=1GiB&find_ms=20&fetch_ms=20000") as store:
        store.touch(ENTRY)
        assert hang.met.is_set()
        assert put(store, 1) is PutOutcome.DROPPED
        hang.released.set()


@pytest.mark.parametrize(
    "option", ["find_ms=soon", "find_ms=-1", "fetch_ms=0", "find_ms=1e3", "find_ms="]
)
def test_options_that_mean_nothing(option: str) -> None:
    with pytest.raises(SettingsError, match="_ms"):
        open_store(f"redis://127.0.0.1:1/0?{option}")
