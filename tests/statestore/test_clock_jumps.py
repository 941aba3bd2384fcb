"""A wall clock that jumps by hours, forward or back, under one process or under the whole host: a
state is computed at most once more than needed, nobody waits for the clock, nothing is wrong.
"""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.places.backend_places import FilePlace
from tests.places.faulty_system import FaultySystem, shared_systems
from tests.places.postgres_servers import PostgresPlace
from tests.places.redis_servers import running

HOUR_S = 3600.0
STEPS = (HOUR_S, -HOUR_S, -0.5)
COMPUTE_S = 0.2  # what a waiter thinks it takes: it waits 2.6 s for a neighbour
PATIENT_S = 20.0  # far beyond that, far below an hour


@pytest.fixture
def processes() -> list[FaultySystem]:
    return shared_systems(3)


@pytest.fixture
def place(tmp_path: Path) -> FilePlace:
    return FilePlace(tmp_path / "store")


@pytest.fixture
def crew(processes: list[FaultySystem], place: FilePlace) -> Iterator[list[FaultySystem]]:
    """Three processes over one file store, at the right time."""
    for process in processes:
        process.ask(f"reopen({place.root.as_uri()!r})")
    yield processes
    for process in processes:
        process.clock(0.0)
        process.ask("close()")


def until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def held(place: FilePlace) -> bool:
    with closing(sqlite3.connect(place.root / "catalog.sqlite3")) as connection:
        return bool(connection.execute("SELECT 1 FROM leases WHERE outcome = ''").fetchall())


def test_a_clock_can_be_off(crew: list[FaultySystem]) -> None:
    """Python's, and SQLite's in its own words; not the one that deadlines go by."""
    one = crew[0]
    one.clock(HOUR_S)
    assert abs(one.ask("time.time()") - time.time() - HOUR_S) < 60
    assert abs(one.ask("time.monotonic()") - time.monotonic()) < 60
    assert one.ask("lease(0)")[1] > 9
    crew[1].clock(2 * HOUR_S)
    assert crew[1].ask("lease(0, 'a third')")[0] == "a third"  # lapsed, by SQLite's clock


@pytest.mark.parametrize("whose", ["the host's", "the owner's", "the others'"])
@pytest.mark.parametrize("step_s", STEPS)
def test_a_jump_while_one_computes(
    crew: list[FaultySystem], place: FilePlace, step_s: float, whose: str
) -> None:
    leader, *others = crew
    leader.tell("turn(0, 1.0, works_s=1.0)")
    until(lambda: held(place))
    for other in others:
        other.tell(f"turn(0, {5 * COMPUTE_S})")
    for process in {"the host's": crew, "the owner's": [leader], "the others'": others}[whose]:
        process.clock(step_s)
    began = time.monotonic()
    came = [process.hear() for process in crew]
    assert time.monotonic() - began < PATIENT_S
    assert came[0] == "computed"
    assert came.count("computed") <= 2
    for process in crew:
        assert process.ask("find(0)") == 0
    assert crew[1].ask(f"turn(1, {COMPUTE_S})") == "computed"  # and the next one is as ever


@pytest.mark.parametrize("step_s", STEPS)
def test_a_jump_while_the_owner_is_stopped(
    crew: list[FaultySystem], place: FilePlace, step_s: float
) -> None:
    """Its lease would last for the step, by the clock. Nobody waits for that."""
    leader, one, another = crew
    leader.tell("turn(0, 1.0, works_s=1.0)")
    until(lambda: held(place))
    leader.process.send_signal(signal.SIGSTOP)
    try:
        for process in crew:
            process.clock(step_s)
        began = time.monotonic()
        assert one.ask(f"turn(0, {COMPUTE_S})") == "computed"
        assert another.ask(f"turn(0, {COMPUTE_S})") in {"stored", "computed"}
        assert time.monotonic() - began < PATIENT_S
        assert another.ask("find(0)") == 0
    finally:
        leader.process.send_signal(signal.SIGCONT)
    assert leader.hear() in {"stored", "computed"}
    assert leader.ask("find(0)") == 0


@pytest.mark.parametrize("outcome", ["", "not stored"])
def test_a_lease_of_a_clock_set_back_is_in_nobodys_way(
    crew: list[FaultySystem], outcome: str
) -> None:
    """The owner is on no machine that one could ask whether it lives."""
    one, another, _ = crew
    one.clock(HOUR_S)
    assert one.ask("lease(0, 'far away')")[0] == "far away"
    if outcome:
        one.ask(f"release(0, {outcome!r}, 'far away')")
    one.clock(0.0)
    assert another.ask("lease(0, 'another')")[0::2] == ("another", "")
    assert one.ask("renew(0, 'another')")
    assert not one.ask("renew(0, 'far away')")


def test_its_owner_renews_a_lease_of_a_clock_set_back(crew: list[FaultySystem]) -> None:
    one, another, _ = crew
    one.clock(HOUR_S)
    one.ask("lease(0, 'one')")
    one.clock(0.0)
    assert one.ask("renew(0, 'one')")
    assert another.ask("lease(0, 'another')")[0] == "one"


def test_a_term_is_bounded(crew: list[FaultySystem]) -> None:
    one, another, _ = crew
    one.ask("lease(0, 'one', 1e6)")
    assert another.ask("lease(0, 'another')")[0] == "one"


def test_a_ttl_goes_by_the_clock(crew: list[FaultySystem]) -> None:
    one, another, _ = crew
    assert one.ask("put(0, ttl_s=60.0)") == "published"
    one.clock(HOUR_S)
    assert one.ask("find(0)") is None
    one.clock(0.0)
    assert one.ask("find(0)") == 0
    assert another.ask("find(0)") == 0
    one.clock(HOUR_S)
    assert one.ask("put(0, ttl_s=60.0)") == "published"  # in the place of what it takes for expired
    assert one.ask("find(0)") == 0
    assert another.ask("find(0)") == 0


@pytest.mark.parametrize("policy", ["learned", "gdsf", "lru"])
def test_budgets_and_pins_hold(crew: list[FaultySystem], place: FilePlace, policy: str) -> None:
    """Room for ten states; what is pinned stays, whatever the time is said to be."""
    one, another, _ = crew
    size = 10 * 20_400
    for process in (one, another):
        process.ask(f"reopen({f'{place.root.as_uri()}?budget={size}&policy={policy}'!r})")
    assert one.ask("put(0, pinned=True)") == "published"
    number = 1
    for step_s in (0.0, HOUR_S, -HOUR_S, 365 * 24 * HOUR_S, 0.0):
        one.clock(step_s)
        for process in (one, another, one, one, another, one):
            assert process.ask(f"put({number})") == "published"
            assert process.ask(f"find({number}, 0)") == number
            assert process.ask(f"find({number - 1}, 0)") in {number - 1, 0}
            number += 1
        assert one.ask("usage()[1]") <= 1.05 * size
        assert another.ask("find(0)") == 0
        one.ask("sweep()")
        assert another.ask("find(0)") == 0


def test_a_sweep_of_an_hour_ahead_costs_a_state_at_most(
    crew: list[FaultySystem], place: FilePlace
) -> None:
    """It takes a blob whose entry is just being committed for one that nobody wanted."""
    writer, sweeper, _ = crew
    with closing(sqlite3.connect(place.root / "catalog.sqlite3", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        writer.tell("put(0)")
        until(lambda: [name for name in place.blob_names() if not name.endswith(".part")])
        writer.process.send_signal(signal.SIGSTOP)
        lock.execute("ROLLBACK")
    sweeper.clock(2 * HOUR_S)
    assert sweeper.ask("store.sweep(3600.0).blobs") == 1
    writer.process.send_signal(signal.SIGCONT)
    assert writer.hear() == "published"
    assert writer.ask("find(0)") is None
    assert writer.ask("put(0)") == "published"
    assert sweeper.ask("find(0)") == 0


@pytest.mark.parametrize("kind", ["redis", "postgresql"])
def test_a_server_goes_by_its_own_clock(
    processes: list[FaultySystem], tmp_path: Path, kind: str
) -> None:
    """A client that is a day ahead, or behind, neither takes a lease nor keeps one for longer."""
    with ExitStack() as stack:
        if kind == "redis":
            url = stack.enter_context(running()).url
        else:
            place = PostgresPlace(tmp_path, timeout_s="20")
            stack.callback(place.drop)
            url = place.url
        url += "&find_ms=30000" if "?" in url else "?find_ms=30000"
        right, *wrong = processes
        for process, ahead_s in zip(processes, (0.0, 24 * HOUR_S, -24 * HOUR_S), strict=True):
            process.clock(ahead_s)
            process.ask(f"reopen({url!r})")
            stack.callback(process.ask, "close()")
        right.ask("lease(0, 'right', 60.0)")
        for number, process in enumerate(wrong, 1):
            owner, left_s, outcome = process.ask("lease(0, 'wrong')")
            assert (owner, outcome) == ("right", "")
            assert 30 < left_s <= 60
            process.ask(f"lease({number}, 'wrong', 60.0)")
            owner, left_s, _ = right.ask(f"lease({number}, 'right')")
            assert owner == "wrong"
            assert 30 < left_s <= 60
            assert process.ask(f"put({number + 10})") == "published"
            assert right.ask(f"find({number + 10})") == number + 10
            assert process.ask(f"find({number + 10})") == number + 10


def test_breakers_and_deadlines_have_another_clock(processes: list[FaultySystem]) -> None:
    """A paused server costs its deadline and is used again, while the clock is set to and fro."""
    process = processes[0]
    with running() as server:
        process.ask(f"reopen({f'{server.url}?find_ms=300&fetch_ms=1000'!r})")
        assert process.ask("put(0)") == "published"
        server.pause()
        began = time.monotonic()
        for ahead_s in (HOUR_S, -HOUR_S, 0.0):
            process.clock(ahead_s)
            assert process.ask("find(0)") is None
            assert process.ask("put(1)") == "dropped"
        assert time.monotonic() - began < PATIENT_S
        server.go_on()
        for ahead_s in (-HOUR_S, HOUR_S):
            process.clock(ahead_s)
            until(lambda: process.ask("find(0)") == 0)
        process.clock(0.0)
        process.ask("close()")
