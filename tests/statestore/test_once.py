"""Turns at one key: who computes, who waits, and when waiting ends, over real leases."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from statestore.backends.base import Backend
from statestore.backends.leases import Leases, Outcome
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.sql.file import open_file_backend
from statestore.errors import UnavailableError
from statestore.once import Once, Patience, Ruling, Turn
from tests.places.backend_places import a_key
from tests.statestore.contracts.test_lease_contract import leases_of

KEY = a_key(0)
LONG_S = 600.0  # longer than any test may take
HANG_S = 60.0  # far above what a test waits for, far below that


@pytest.fixture(params=["memory", "file"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend = MemoryBackend() if request.param == "memory" else open_file_backend(tmp_path)
    yield backend
    backend.close()


def of_a_process(backend: Backend, ttl_s: float = LONG_S) -> Once[str]:
    """With an owner of its own, as each process has."""
    return Once(lambda: leases_of(backend), least_ttl_s=ttl_s)


def settled(once: Once[str], patience: Patience) -> tuple[Ruling, Turn[str], float]:
    """The ruling, the turn, and how long that took."""
    turn = once.join(KEY)
    began = time.monotonic()
    return turn.settle(patience), turn, time.monotonic() - began


def hurry() -> Callable[[], None]:
    """A check that fails the test where somebody waits on and on."""
    until = time.monotonic() + HANG_S

    def check() -> None:
        assert time.monotonic() < until, "it waits for what will never come"

    return check


def test_waiting_ends_where_computing_would_have_been_cheaper(backend: Backend) -> None:
    """The leader holds on to its lease; nobody waits for its end."""
    leader = of_a_process(backend).join(KEY)
    assert leader.settle(Patience(0.1)) is Ruling.COMPUTE
    ruling, follower, waited_s = settled(of_a_process(backend), Patience(0.2, floor_s=0.1))
    assert ruling is Ruling.COMPUTE
    assert not follower.holds  # it computes beside the leader
    assert 0.5 <= waited_s < HANG_S
    leader.renew()
    assert leader.holds


def test_a_lease_about_to_lapse_is_waited_for(backend: Backend) -> None:
    """Longer than patience says, and then the follower leads, alone."""
    assert of_a_process(backend, ttl_s=2.0).join(KEY).holds
    once = of_a_process(backend)
    ruling, follower, waited_s = settled(once, Patience(30.0, slack=0.0, floor_s=0.1))
    assert ruling is Ruling.COMPUTE
    assert follower.holds
    assert waited_s < HANG_S


def test_the_dead_of_this_machine_are_not_waited_for(backend: Backend) -> None:
    """However long the lease of one that was killed still runs."""
    dying = "from statestore.owner import new_owner; print(new_owner(), end='')"
    command = [sys.executable, "-c", dying]
    dead = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    leases_of(backend).acquire(KEY, dead, LONG_S)
    ruling, follower, waited_s = settled(of_a_process(backend), Patience(LONG_S, check=hurry()))
    assert ruling is Ruling.COMPUTE
    assert follower.holds
    assert waited_s < HANG_S


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(Outcome.PUBLISHED, Ruling.STORED), (Outcome.NOT_STORED, Ruling.COMPUTE)],
)
def test_those_who_wait_do_as_the_outcome_says(
    backend: Backend, outcome: Outcome, expected: Ruling
) -> None:
    leader = of_a_process(backend).join(KEY)
    turns = [of_a_process(backend).join(KEY) for _ in range(4)]
    assert not any(turn.holds for turn in turns)
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(turn.settle, Patience(LONG_S)) for turn in turns]
        leader.end(outcome)
        assert [wait.result(HANG_S) for wait in waits] == [expected] * 4


def test_threads_of_a_process_take_the_value(backend: Backend) -> None:
    once = of_a_process(backend)
    leader = once.join(KEY)
    turns = [once.join(KEY) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(turn.settle, Patience(LONG_S)) for turn in turns]
        leader.give("value")
        assert [wait.result(HANG_S) for wait in waits] == [Ruling.TAKE] * 4
    assert [turn.value for turn in turns] == ["value"] * 4
    assert once.held([KEY]) == "value"
    leader.end(Outcome.PUBLISHED)
    assert once.held([KEY]) is None


def test_a_place_that_gives_no_leases_is_not_waited_for() -> None:
    asked = 0

    def down() -> Leases:
        nonlocal asked
        asked += 1
        raise UnavailableError("down")

    for once in (Once[str](lambda: None), Once[str](down)):
        ruling, turn, _ = settled(once, Patience(LONG_S))
        assert ruling is Ruling.COMPUTE
        turn.end(Outcome.PUBLISHED)
    assert asked == 1  # a turn that holds nothing has nothing to give back
