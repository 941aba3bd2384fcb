"""What every place that gives out leases owes; it plugs in as in `test_backend_contract`."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from statestore.backends.base import Backend
from statestore.backends.leases import OUTCOME_S, Leases, Outcome
from statestore.errors import ClosedError
from tests.places.backend_places import FilePlace, Place, PlaceContract, a_key

LONG_S = 60.0  # longer than any test
SHORT_S = 0.2  # lapses in a test
A, B = "host ü:1:a", "host:2:b"


def leases_of(backend: Backend) -> Leases:
    leases = backend.leases
    assert leases is not None
    return leases


class LeaseContract(PlaceContract):
    """Inherit and give `place`, whose backends give out leases."""

    @pytest.fixture
    def leases(self, backend: Backend) -> Leases:
        return leases_of(backend)

    @pytest.fixture
    def crowd(self, place: Place) -> Iterator[list[Leases]]:
        """Those of four more backends that are open on the place."""
        with ExitStack() as stack:
            backends = [stack.enter_context(closing(place.open())) for _ in range(4)]
            yield [leases_of(backend) for backend in backends]

    # Taking and holding

    def test_the_first_to_ask_holds_it(self, leases: Leases, crowd: list[Leases]) -> None:
        mine = leases.acquire(a_key(0), A, LONG_S)
        assert (mine.owner, mine.outcome) == (A, None)
        assert LONG_S - 30 < mine.remaining_s <= LONG_S
        seen = crowd[0].acquire(a_key(0), B, 2 * LONG_S)
        assert (seen.owner, seen.outcome) == (A, None)
        assert 0 < seen.remaining_s <= LONG_S

    def test_each_key_has_its_own(self, leases: Leases) -> None:
        assert leases.acquire(a_key(0), A, LONG_S).owner == A
        assert leases.acquire(a_key(1), B, LONG_S).owner == B

    def test_ones_own_taken_again_is_renewed(self, leases: Leases) -> None:
        leases.acquire(a_key(0), A, LONG_S)
        again = leases.acquire(a_key(0), A, 10 * LONG_S)
        assert (again.owner, again.outcome) == (A, None)
        assert again.remaining_s > 5 * LONG_S

    def test_renewing(self, leases: Leases, crowd: list[Leases]) -> None:
        assert not leases.renew(a_key(0), A, LONG_S)
        leases.acquire(a_key(0), A, LONG_S)
        assert not crowd[0].renew(a_key(0), B, LONG_S)
        assert leases.renew(a_key(0), A, 10 * LONG_S)
        seen = crowd[0].acquire(a_key(0), B, LONG_S)
        assert seen.owner == A
        assert seen.remaining_s > 5 * LONG_S

    def test_a_renewed_lease_outlives_its_first_term(self, leases: Leases) -> None:
        leases.acquire(a_key(0), A, SHORT_S)
        assert leases.renew(a_key(0), A, LONG_S)
        seen = leases.wait(a_key(0), 2 * SHORT_S)
        assert seen is not None
        assert (seen.owner, seen.outcome) == (A, None)

    def test_one_that_lapses_goes_to_whoever_asks(
        self, leases: Leases, crowd: list[Leases]
    ) -> None:
        leases.acquire(a_key(0), A, SHORT_S)
        assert crowd[0].wait(a_key(0), LONG_S) is None
        assert not leases.renew(a_key(0), A, LONG_S)
        assert crowd[0].acquire(a_key(0), B, LONG_S).owner == B
        assert not leases.renew(a_key(0), A, LONG_S)
        leases.release(a_key(0), A, Outcome.NOT_STORED)  # the late one's word counts for nothing
        seen = leases.wait(a_key(0), 0.0)
        assert seen is not None
        assert (seen.owner, seen.outcome) == (B, None)

    # Letting go

    def test_one_released_as_published_is_free(self, leases: Leases, crowd: list[Leases]) -> None:
        leases.acquire(a_key(0), A, LONG_S)
        leases.release(a_key(0), A, Outcome.PUBLISHED)
        seen = crowd[0].wait(a_key(0), 0.0)
        assert seen is not None
        assert (seen.owner, seen.outcome) == (A, Outcome.PUBLISHED)
        assert 0 < seen.remaining_s <= OUTCOME_S
        taken = crowd[0].acquire(a_key(0), B, LONG_S)
        assert (taken.owner, taken.outcome) == (B, None)
        assert taken.remaining_s > OUTCOME_S

    def test_one_released_as_not_stored_says_so(self, leases: Leases, crowd: list[Leases]) -> None:
        leases.acquire(a_key(0), A, LONG_S)
        leases.release(a_key(0), A, Outcome.NOT_STORED)
        for asks, owner in ((crowd[0], B), (leases, A)):
            seen = asks.acquire(a_key(0), owner, LONG_S)
            assert (seen.owner, seen.outcome) == (A, Outcome.NOT_STORED)
            assert 0 < seen.remaining_s <= OUTCOME_S

    def test_a_released_lease_is_not_renewed(self, leases: Leases) -> None:
        for number, outcome in enumerate(Outcome):
            leases.acquire(a_key(number), A, LONG_S)
            leases.release(a_key(number), A, outcome)
            assert not leases.renew(a_key(number), A, LONG_S)

    def test_only_its_owner_releases_it(self, leases: Leases, crowd: list[Leases]) -> None:
        crowd[0].release(a_key(0), B, Outcome.PUBLISHED)
        assert leases.wait(a_key(0), 0.0) is None
        leases.acquire(a_key(0), A, LONG_S)
        crowd[0].release(a_key(0), B, Outcome.PUBLISHED)
        seen = leases.wait(a_key(0), 0.0)
        assert seen is not None
        assert (seen.owner, seen.outcome) == (A, None)

    def test_a_second_release_changes_nothing(self, leases: Leases) -> None:
        leases.acquire(a_key(0), A, LONG_S)
        leases.release(a_key(0), A, Outcome.NOT_STORED)
        leases.release(a_key(0), A, Outcome.PUBLISHED)
        seen = leases.wait(a_key(0), 0.0)
        assert seen is not None
        assert seen.outcome is Outcome.NOT_STORED

    # Waiting

    def test_nobody_waits_for_what_is_free(self, leases: Leases) -> None:
        started = time.monotonic()
        assert leases.wait(a_key(0), LONG_S) is None
        assert time.monotonic() - started < LONG_S / 2

    def test_a_wait_ends_at_its_time(self, leases: Leases, crowd: list[Leases]) -> None:
        leases.acquire(a_key(0), A, LONG_S)
        for timeout_s in (-1.0, 0.0, 0.1):
            started = time.monotonic()
            seen = crowd[0].wait(a_key(0), timeout_s)
            assert timeout_s <= time.monotonic() - started < LONG_S / 2
            assert seen is not None
            assert (seen.owner, seen.outcome) == (A, None)

    @pytest.mark.parametrize("outcome", Outcome)
    def test_those_who_wait_are_told(
        self, leases: Leases, crowd: list[Leases], outcome: Outcome
    ) -> None:
        """Whether a release comes before, between or after their first looks."""
        leases.acquire(a_key(0), A, LONG_S)
        with ThreadPoolExecutor(8) as threads:
            waiting = [threads.submit(crowd[n % 4].wait, a_key(0), LONG_S) for n in range(8)]
            time.sleep(0.1)
            released_at = time.monotonic()
            leases.release(a_key(0), A, outcome)
            told = [wait.result() for wait in waiting]
        assert time.monotonic() - released_at < LONG_S / 2
        assert {(seen.owner, seen.outcome) for seen in told if seen} == {(A, outcome)}
        assert None not in told

    def test_a_wait_sees_a_lease_lapse(self, leases: Leases, crowd: list[Leases]) -> None:
        """Its owner was killed; nobody says anything."""
        leases.acquire(a_key(0), A, SHORT_S)
        started = time.monotonic()
        with ThreadPoolExecutor(4) as threads:
            waiting = [threads.submit(each.wait, a_key(0), LONG_S) for each in crowd]
            assert [wait.result() for wait in waiting] == [None] * 4
        assert time.monotonic() - started < LONG_S / 2

    # Several at once

    def test_of_many_who_ask_at_once_one_holds_it(self, crowd: list[Leases]) -> None:
        start = threading.Barrier(12)

        def ask(number: int) -> list[str]:
            start.wait()
            asks = crowd[number % 4]
            return [asks.acquire(a_key(n), f"owner {number}", LONG_S).owner for n in range(5)]

        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(ask, range(12)))
        assert all(owners == answers[0] for owners in answers)

    def test_no_two_hold_one_at_once(self, crowd: list[Leases]) -> None:
        holders: list[str] = []
        overlaps: list[tuple[str, ...]] = []
        turns: list[str] = []

        def work(number: int) -> None:
            mine, owner = crowd[number % 4], f"owner {number}"
            dice = random.Random(number)
            done = 0
            while done < 5:
                lease = mine.acquire(a_key(0), owner, LONG_S)
                if (lease.owner, lease.outcome) != (owner, None):
                    mine.wait(a_key(0), LONG_S)
                    continue
                holders.append(owner)
                if len(holders) > 1:
                    overlaps.append(tuple(holders))
                time.sleep(dice.uniform(0, 0.002))
                holders.remove(owner)
                turns.append(owner)
                mine.release(a_key(0), owner, Outcome.PUBLISHED)
                done += 1

        with ThreadPoolExecutor(6) as threads:
            for worker in [threads.submit(work, number) for number in range(6)]:
                worker.result()
        assert overlaps == []
        assert len(turns) == 30

    def test_leases_leave_the_entries_alone(self, backend: Backend, leases: Leases) -> None:
        leases.acquire(a_key(0), A, LONG_S)
        leases.release(a_key(0), A, Outcome.PUBLISHED)
        assert backend.usage().entries == 0
        assert backend.longest([a_key(0)], time.time()) is None

    @pytest.mark.parametrize("call", ["acquire", "renew", "release", "wait"])
    def test_a_closed_backend_gives_none(self, backend: Backend, leases: Leases, call: str) -> None:
        arguments = {
            "acquire": (A, LONG_S),
            "renew": (A, LONG_S),
            "release": (A, Outcome.PUBLISHED),
            "wait": (LONG_S,),
        }
        backend.close()
        with pytest.raises(ClosedError, match="was closed"):
            getattr(leases, call)(a_key(0), *arguments[call])


class TestFileLeases(LeaseContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return FilePlace(tmp_path / "store")
