"""Budgets on real places: what one writer is promised, and what many at once are."""

from __future__ import annotations

import math
import random
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from statestore.backends.base import Backend, Blob
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.budget import Budget
from statestore.backends.wrappers.budgeted import Budgeted
from statestore.entry import Change, Entry, EntryFilter, Role, Status, Usage
from statestore.errors import FullError, InputError, SettingsError, UnavailableError
from statestore.eviction import make_policy
from statestore.eviction.classic import Lru
from statestore.keys import ChunkRule, plan
from statestore.metrics import Metrics
from statestore.settings import open_store
from statestore.store import PutOutcome
from tests.places.backend_places import (
    CREATED_AT,
    FilePlace,
    MemoryPlace,
    Place,
    PlaceContract,
    a_blob,
    a_key,
    an_entry,
    publish,
)
from tests.places.postgres_servers import PostgresPlace
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import RedisServer, running
from tests.places.states import IDENTITY, make_state
from tests.statestore.workers.budget_worker import run_worker

KB = 1000


class Counted(Wrapper):
    """Counts how often totals are read."""

    reads = 0

    def usage(self, namespace: str | None = None) -> Usage:
        self.reads += 1
        return super().usage(namespace)


def within(inner: Backend, total_bytes: int | None, policy: str = "lru", **more: int) -> Budgeted:
    return Budgeted(inner, Budget(total_bytes, more), make_policy(policy))


def put(backend: Backend, number: int, **fields: object) -> bool:
    """Entries come one second apart, of 1000 bytes."""
    return publish(backend, an_entry(number, created_at=CREATED_AT + number, **fields))


def stored(backend: Backend) -> set[int]:
    return {entry.key.n_tokens - 1 for entry in backend.entries(EntryFilter())}


def found(backend: Backend, number: int) -> Entry | None:
    return backend.longest([a_key(number)], CREATED_AT)


class Meeting(Wrapper):
    """Publishes once another one is about to."""

    def __init__(self, inner: Backend, both: threading.Barrier) -> None:
        super().__init__(inner)
        self._both = both

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        self._both.wait(60.0)
        return super().publish(entry, blob, durable=durable)


class NewestFirst(Lru):
    """Ranks what came last below what came first."""

    def __init__(self) -> None:
        self.judge = lambda entries, _: [-entry.used_at for entry in entries]


class BudgetContract(PlaceContract):
    """Inherit and give `place`."""

    # Room

    def test_room_is_made_before_a_put(self, backend: Backend, place: Place) -> None:
        budgeted = within(backend, 10 * KB)
        for number in range(30):
            assert put(budgeted, number)
            assert backend.usage().blob_bytes <= 10 * KB
        assert stored(backend) == set(range(20, 30))
        assert len(place.blob_names()) == 10

    def test_what_goes_is_counted(self, backend: Backend) -> None:
        metrics = Metrics()
        budgeted = Budgeted(backend, Budget(10 * KB), make_policy("lru"), metrics=metrics)
        for number in range(12):
            put(budgeted, number)
        labels = {"policy": "lru", "reason": "room"}
        assert metrics.value("evictions_total", **labels) == 2
        assert metrics.value("evicted_bytes_total", **labels) == 2 * KB
        assert metrics.value("evicted_tokens_total", **labels) == 1 + 2

    def test_a_hit_keeps_it(self, backend: Backend) -> None:
        budgeted = within(backend, 4 * KB)
        for number in range(4):
            put(budgeted, number)
        entry = found(budgeted, 0)
        assert entry is not None
        budgeted.touch(entry, CREATED_AT + 10, 0.0)
        put(budgeted, 11)
        assert stored(backend) == {0, 2, 3, 11}
        touched = found(backend, 0)
        assert touched is not None
        assert (touched.hits, touched.used_at) == (1, CREATED_AT + 10)

    def test_the_policy_decides(self, backend: Backend) -> None:
        budgeted = within(backend, 4 * KB, "gdsf")
        for number, gain in enumerate((400, 20, 300, 200, 100)):
            key = replace(a_key(number), n_tokens=1000)
            entry = an_entry(number, key=key, ancestor_tokens=1000 - gain)
            assert publish(budgeted, replace(entry, created_at=CREATED_AT + number))
        left = {entry.ancestor_tokens for entry in backend.entries(EntryFilter())}
        assert left == {600, 700, 800, 900}

    def test_a_judge_decides(self, backend: Backend) -> None:
        """Over what the scores say; and over what an account of a namespace has to let go."""
        policy = NewestFirst()
        budgeted = Budgeted(backend, Budget(8 * KB, {"a": 4 * KB}), policy)
        for number in range(10):
            assert put(budgeted, number, namespace="a" if number % 2 else "b")
        assert stored(backend) == {0, 1, 2, 3, 4, 5, 6, 9}
        assert put(budgeted, 10, namespace="b")
        assert stored(backend) == {0, 1, 2, 3, 4, 5, 6, 10}
        assert backend.usage().age == 0.0

    def test_passing_stops_go_first(self, backend: Backend) -> None:
        budgeted = within(backend, 4 * KB, "gdsf")
        put(budgeted, 0)
        for number in (1, 2, 3):
            put(budgeted, number, role=Role.SPARSE)
        for number in (4, 5):
            put(budgeted, number)
        assert stored(backend) == {0, 3, 4, 5}

    def test_a_stop_that_was_used_stays(self, backend: Backend) -> None:
        """For as long as any state of the store does; one that expires later is nobody's stop."""
        cases = ((100.0, None, None), (100.0, 7000.0, 7000.0), (None, None, None))
        for number, (passes_s, ttl_s, left_s) in enumerate((*cases, (7000.0, None, 7000.0))):
            budgeted = Budgeted(backend, Budget(10 * KB), make_policy(), ttl_s)
            key, until = a_key(number), None if passes_s is None else CREATED_AT + passes_s
            publish(budgeted, an_entry(number, role=Role.SPARSE, expires_at=until))
            for _ in range(2):
                stop = budgeted.longest([key], CREATED_AT + 10)
                assert stop is not None
                budgeted.touch(stop, CREATED_AT + 10, 0.0)
            stop = backend.longest([key], CREATED_AT + 10)
            assert stop is not None
            assert stop.expires_at == (None if left_s is None else CREATED_AT + left_s)

    def test_other_states_expire_when_they_were_to(self, backend: Backend) -> None:
        budgeted = within(backend, 10 * KB)
        put(budgeted, 0, role=Role.PROMPT, expires_at=CREATED_AT + 100)
        entry = found(budgeted, 0)
        assert entry is not None
        budgeted.touch(entry, CREATED_AT + 10, 0.0)
        assert found(budgeted, 0) == replace(
            entry, hits=1, used_at=CREATED_AT + 10, score=CREATED_AT + 10
        )

    def test_the_policys_memo_is_kept(self, backend: Backend) -> None:
        """By one process, read by another; a policy that writes none leaves it."""
        budgeted = within(backend, 10 * KB, "learned")
        put(budgeted, 0, role=Role.PROMPT)
        entry = found(budgeted, 0)
        assert entry is not None
        assert entry.memo.startswith("1 n 0 ")
        other = within(backend, 10 * KB, "learned")
        seen = other.longest([entry.key], CREATED_AT + 9)
        assert seen is not None
        other.touch(seen, CREATED_AT + 9, 0.0)
        touched = found(backend, 0)
        assert touched is not None
        assert touched.memo.startswith("1 a 1 ")
        within(backend, 10 * KB, "gdsf").touch(touched, CREATED_AT + 10, 0.0)
        blind = found(backend, 0)
        assert blind is not None
        assert (blind.memo, blind.hits) == (touched.memo, 2)

    def test_states_of_many_sizes(self, backend: Backend) -> None:
        budgeted = within(backend, 20 * KB, "gdsf")
        dice = random.Random(1)
        for number in range(60):
            put(budgeted, number, blob_bytes=dice.randrange(1, 8 * KB))
            assert backend.usage().blob_bytes <= 20 * KB
        assert backend.usage().blob_bytes > 12 * KB

    def test_few_states_go_one_by_one(self, backend: Backend) -> None:
        """Each of them counts."""
        budgeted = within(backend, 200 * KB)
        for number in range(201):
            put(budgeted, number)
        assert stored(backend) == set(range(1, 201))

    def test_a_large_budget_is_emptied_by_whole_states_of_slack(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("statestore.backends.wrappers.budget.FEW", 100)
        monkeypatch.setattr("statestore.backends.wrappers.budget.SLACK", 0.025)
        budgeted = within(backend, 100 * KB)
        for number in range(100):
            put(budgeted, number)
        assert backend.usage().entries == 100
        put(budgeted, 100)
        assert stored(backend) == set(range(2 + 1, 101))

    # Marks

    def test_above_the_high_mark_room_is_made_down_to_the_low_one(self, backend: Backend) -> None:
        budgeted = Budgeted(backend, Budget(20 * KB, high=0.9, low=0.5), make_policy("lru"))
        held = []
        for number in range(40):
            assert put(budgeted, number)
            held.append(backend.usage().entries)
        assert held[:18] == list(range(1, 19))
        assert held[18:36] == [*range(10, 19), *range(10, 19)]
        assert stored(backend) == set(range(27, 40))

    def test_marks_are_those_of_a_namespace_too(self, backend: Backend) -> None:
        budget = Budget(None, {"a": 10 * KB}, high=0.8, low=0.4)
        budgeted = Budgeted(backend, budget, make_policy("lru"))
        for number in range(9):
            assert put(budgeted, number, namespace="a")
            assert put(budgeted, 100 + number, namespace="b")
        assert backend.usage("a").entries == 4
        assert backend.usage("b").entries == 9

    def test_a_high_mark_alone(self, backend: Backend) -> None:
        """What is above it is left for those who write at once."""
        budgeted = Budgeted(backend, Budget(10 * KB, high=0.7), make_policy("lru"))
        for number in range(12):
            put(budgeted, number)
        assert stored(backend) == set(range(5, 12))
        with pytest.raises(FullError, match=r"9001 bytes is larger than .* 10000 bytes, of which"):
            put(Budgeted(backend, Budget(10 * KB, high=0.9), make_policy()), 50, blob_bytes=9001)

    def test_one_put_does_not_pay_for_all_that_goes(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("statestore.backends.wrappers.budget.AT_ONCE", 4)
        monkeypatch.setattr("statestore.backends.wrappers.budgeted.AT_ONCE", 4)
        budgeted = Budgeted(backend, Budget(20 * KB, low=0.5), make_policy("lru"))
        held = []
        for number in range(30):
            assert put(budgeted, number)
            held.append(backend.usage().entries)
        # 21 are to be 10: four go with each put, until they do
        assert held[18:] == [19, 20, 17, 14, 11, 10, 11, 12, 13, 14, 15, 16]

    def test_a_large_state_takes_no_more_room_than_it_needs(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("statestore.backends.wrappers.budget.AT_ONCE", 4)
        monkeypatch.setattr("statestore.backends.wrappers.budgeted.AT_ONCE", 4)
        budgeted = within(backend, 20 * KB)
        for number in range(20):
            assert put(budgeted, number)
        assert put(budgeted, 20, blob_bytes=9 * KB)
        assert stored(backend) == set(range(9, 21))

    def test_what_is_there_already_drains_nothing(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("statestore.backends.wrappers.budget.AT_ONCE", 4)
        monkeypatch.setattr("statestore.backends.wrappers.budgeted.AT_ONCE", 4)
        budgeted = Budgeted(backend, Budget(20 * KB, low=0.5), make_policy("lru"))
        for number in range(21):
            assert put(budgeted, number)
        left = stored(backend)
        assert len(left) == 17
        assert not put(budgeted, 20)
        assert stored(backend) == left

    def test_pins_above_the_low_mark_end_the_draining(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What has come since the rest went stays until the high mark is passed again."""
        monkeypatch.setattr("statestore.backends.wrappers.budget.AT_ONCE", 4)
        monkeypatch.setattr("statestore.backends.wrappers.budgeted.AT_ONCE", 4)
        budgeted = Budgeted(backend, Budget(10 * KB, low=0.3), make_policy("lru"))
        for number in range(16):
            put(budgeted, number, pinned=number < 5)
        assert set(range(5)) <= stored(backend)
        # 5 to 8 went for 10, and 9 and 10 for 11: nothing else is left, and it ends there
        assert stored(backend) == {*range(5), 11, 12, 13, 14, 15}

    def test_what_is_there_already_is_refused_as_ever(self, backend: Backend) -> None:
        budgeted = within(backend, 2 * KB)
        assert put(budgeted, 0)
        assert not put(budgeted, 0)
        assert put(budgeted, 1)
        assert not put(budgeted, 1)
        assert stored(backend) == {0, 1}  # and nothing went for it

    def test_a_state_larger_than_the_budget(self, backend: Backend) -> None:
        budgeted = within(backend, 2 * KB)
        put(budgeted, 0)
        with pytest.raises(FullError, match=r"a state of 2001 bytes is larger than .* 2000 bytes"):
            put(budgeted, 1, blob_bytes=2001)
        assert stored(backend) == {0}

    def test_what_was_there_before_the_budget_leaves_in_order(self, backend: Backend) -> None:
        for number in range(20):
            put(backend, number, score=CREATED_AT + number)
        put(within(backend, 5 * KB, "gdsf"), 20)
        assert stored(backend) == {16, 17, 18, 19, 20}

    # Pins, expiry, namespaces

    def test_for_what_pins_leave_no_room_nothing_goes(self, backend: Backend) -> None:
        budgeted = within(backend, 4 * KB, default=3 * KB)
        for number in range(2):
            put(budgeted, number, pinned=number == 0)
        put(budgeted, 2, namespace="other")
        with pytest.raises(FullError, match="1 pinned states of 1000 bytes stay"):
            put(budgeted, 3, blob_bytes=2 * KB + 1)
        assert stored(backend) == {0, 1, 2}
        budgeted.update(a_key(1), Change(pinned=True))
        with pytest.raises(FullError, match="2 pinned states"):
            put(budgeted, 4, namespace="other", blob_bytes=2 * KB + 1)
        assert stored(backend) == {0, 1, 2}
        budgeted.update(a_key(1), Change(pinned=False))
        assert put(budgeted, 5, blob_bytes=2 * KB)
        assert {0, 5} <= stored(backend) <= {0, 2, 5}

    def test_pinned_states_count_and_stay(self, backend: Backend) -> None:
        budgeted = within(backend, 3 * KB)
        put(budgeted, 0, pinned=True)
        put(budgeted, 1)
        budgeted.update(a_key(1), Change(pinned=True))
        for number in (2, 3, 4):
            put(budgeted, number)
        assert stored(backend) == {0, 1, 4}
        put(budgeted, 5, pinned=True)
        with pytest.raises(FullError, match="3 pinned states of 3000 bytes stay"):
            put(budgeted, 6)
        assert stored(backend) == {0, 1, 5}
        budgeted.update(a_key(0), Change(pinned=False))
        assert put(budgeted, 6)
        assert stored(backend) == {1, 5, 6}

    def test_a_default_expiry(self, backend: Backend) -> None:
        budgeted = Budgeted(backend, Budget(), make_policy(), ttl_s=60.0)
        put(budgeted, 0)
        put(budgeted, 1, expires_at=CREATED_AT + 5)
        assert found(budgeted, 0).expires_at == CREATED_AT + 60
        assert found(budgeted, 1).expires_at == CREATED_AT + 5
        assert budgeted.longest([a_key(0)], CREATED_AT + 61) is None

    def test_a_namespace_keeps_within_its_own(self, backend: Backend) -> None:
        budgeted = within(backend, 10 * KB, small=2 * KB)
        for number in range(5):
            put(budgeted, number)
        for number in range(5, 10):
            put(budgeted, number, namespace="small")
        assert stored(backend) == {0, 1, 2, 3, 4, 8, 9}
        with pytest.raises(FullError, match="the budget of namespace 'small', 2000 bytes"):
            put(budgeted, 10, namespace="small", blob_bytes=3 * KB)
        for number in range(11, 30):
            put(budgeted, number)
        assert backend.usage().blob_bytes == 10 * KB  # and in all as well
        assert backend.usage("small").entries == 0

    def test_a_put_that_fails_gives_its_room_back(self, backend: Backend) -> None:
        budgeted = within(backend, 2 * KB)
        for _ in range(5):
            with pytest.raises(InputError):
                budgeted.publish(an_entry(0), [b"too short"])
        put(budgeted, 1)
        put(budgeted, 2)
        assert stored(backend) == {1, 2}

    # Others

    def test_totals_are_read_once_per_put_or_less(self, backend: Backend) -> None:
        counted = Counted(backend)
        budgeted = within(counted, 50 * KB)
        for number in range(50):
            put(budgeted, number)
        assert counted.reads <= 25
        counted.reads = 0
        for number in range(50, 100):
            put(budgeted, number)
        assert counted.reads <= 50

    def test_totals_are_believed_for_a_second(self, backend: Backend) -> None:
        """Far from the mark own puts ask for none; what others put is known a second later."""
        counted, at = Counted(backend), [100.0]
        lru = make_policy("lru")
        budgeted = Budgeted(counted, Budget(1000 * KB), lru, monotonic=lambda: at[0])
        for moment, reads in ((0.0, 1), (0.5, 1), (1.0, 1), (1.001, 2), (2.0, 2), (2.002, 3)):
            at[0] = 100.0 + moment
            assert put(budgeted, round(1000 * moment))
            assert counted.reads == reads, moment

    def test_what_others_put_counts_a_second_later(self, backend: Backend) -> None:
        at = [100.0]
        mine = Budgeted(backend, Budget(40 * KB), make_policy("lru"), monotonic=lambda: at[0])
        put(mine, 0)
        for number in range(1, 40):
            put(backend, number)
        at[0] += 1.0
        put(mine, 40)  # believes that there is room
        assert backend.usage().entries == 41
        at[0] += 0.001
        put(mine, 41)
        assert backend.usage().entries == 40

    def test_the_age_is_believed_for_ten_seconds(self, backend: Backend) -> None:
        """Where nothing else asks for totals."""
        counted, at = Counted(backend), [100.0]
        lru = make_policy("lru")
        budgeted = Budgeted(counted, Budget(), lru, 60.0, monotonic=lambda: at[0])
        for moment, reads in ((0, 1), (5, 1), (10, 1), (10.001, 2), (20, 2), (20.002, 3)):
            at[0] = 100.0 + moment
            assert put(budgeted, round(1000 * moment))
            assert counted.reads == reads, moment

    def test_what_others_put_is_noticed(self, backend: Backend, place: Place) -> None:
        with closing(place.open()) as theirs:
            mine, other = within(backend, 20 * KB), within(theirs, 20 * KB)
            for number in range(80):
                put((mine, other)[number % 2], number)
                assert backend.usage().blob_bytes <= 21 * KB
        assert len(stored(backend) & set(range(64, 80))) >= 14

    def test_what_two_put_at_once_is_taken_back(self, backend: Backend, place: Place) -> None:
        """Both found room for one. Whoever comes last sees that it was too much."""
        for number in range(19):
            put(backend, number)
        both = threading.Barrier(2)
        with closing(place.open()) as theirs, ThreadPoolExecutor(2) as threads:
            writers = [within(Meeting(one, both), 20 * KB) for one in (backend, theirs)]
            puts = [threads.submit(put, one, 30 + n) for n, one in enumerate(writers)]
            assert [done.result() for done in puts] == [True, True]
        assert backend.usage().blob_bytes == 20 * KB
        assert {30, 31} <= stored(backend)

    def test_a_state_that_is_being_read_survives(self, backend: Backend) -> None:
        budgeted = within(backend, 2 * KB)
        put(budgeted, 0)
        entry = found(budgeted, 0)
        assert entry is not None
        blob = budgeted.read(entry)
        for number in range(1, 6):
            put(budgeted, number)
        assert found(budgeted, 0) is None
        assert blob == a_blob(entry.key)

    def test_writers_and_readers_in_threads(self, place: Place) -> None:
        """Each connection is shared by two threads, as in a server."""
        with ExitStack() as stack:
            opened = [stack.enter_context(closing(place.open())) for _ in range(3)]
            shared = [within(one, 40 * KB, "gdsf") for one in opened]

            def work(seed: int) -> None:
                dice, mine = random.Random(seed), shared[seed % 3]
                for _ in range(60):
                    number = dice.randrange(200)
                    put(mine, number, blob_bytes=dice.randrange(1, KB))
                    entry = found(mine, dice.randrange(200))
                    if entry is not None:
                        blob = mine.read(entry)
                        assert blob is None or blob == a_blob(entry.key, entry.blob_bytes)
                        with suppress(UnavailableError):  # SQLite's lock, and others hold it
                            mine.touch(entry, CREATED_AT + dice.random(), 0.0)

            with ThreadPoolExecutor(6) as threads:
                for future in [threads.submit(work, seed) for seed in range(6)]:
                    future.result()
            usage = opened[0].usage()
            assert 30 * KB < usage.blob_bytes <= 42 * KB
            listed = list(opened[0].entries(EntryFilter()))
            assert sum(entry.blob_bytes for entry in listed) == usage.blob_bytes
            assert {entry.blob for entry in listed} == place.blob_names()

    def test_quarantined_states_make_room_first(self, backend: Backend) -> None:
        budgeted = within(backend, 3 * KB)
        for number in range(3):
            put(budgeted, number)
        budgeted.update(a_key(2), Change(status=Status.QUARANTINED, reason="bad"))
        put(budgeted, 3)
        assert stored(backend) == {0, 1, 3}


class TestFileBudget(BudgetContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        return FilePlace(tmp_path / "store")


class TestMemoryBudget(BudgetContract):
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        place = MemoryPlace("budgets")
        yield place
        place.held.close()


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


class TestRedisBudget(BudgetContract):
    @pytest.fixture
    def place(self, redis: RedisServer, request: pytest.FixtureRequest) -> Place:
        return RedisPlace(redis.url, [redis], request.node.name)


class TestPostgresBudget(BudgetContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        place = PostgresPlace(tmp_path / "store")
        yield place
        place.drop()


@pytest.fixture(params=["file", "redis", "postgresql"])
def crew_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new store that waits for as long as a loaded machine takes."""
    if request.param == "file":
        yield (tmp_path / "store").as_uri()
    elif request.param == "redis":
        server = request.getfixturevalue("redis")
        yield f"{server.url}?prefix={tmp_path.name.strip('0123456789')}&timeout_s=30&find_ms=0"
    else:
        place = PostgresPlace(tmp_path / "store", timeout_s="30")
        yield f"{place.url}&find_ms=0"
        place.drop()


def test_processes_keep_within_a_budget(crew_url: str) -> None:
    """Eight write for all they are worth while a ninth looks on."""
    done = run_worker(crew_url, writers=8, puts=40)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_bytes": 0}, "budget in all: at least one byte, not 0"),
        ({"namespaces": {"a": -1}}, "budget a: at least one byte"),
        ({"low": 0.9, "high": 0.8}, "low: 0.9 is not below high, 0.8"),
        ({"low": 1.0}, "low: 1 is not below high, 1"),
        ({"low": 0.8, "high": 0.8}, "low: 0.8 is not below high, 0.8"),
        ({"high": 1.1}, "high: 1.1 is no share of a budget: above 0, and at most 1"),
        ({"high": 0.0}, "high: 0 is no share"),
        ({"low": 0.0}, "low: 0 is no share"),
        ({"low": math.nan}, "low: nan is no share"),
    ],
)
def test_a_budget_that_makes_no_sense(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Budget(**arguments)


# By URL


def opened(tmp_path: Path, options: str) -> Backend:
    return open_store(f"file://{tmp_path}/store?{options}").backend


def test_options_of_a_url(tmp_path: Path) -> None:
    backend = opened(tmp_path, "budget=1MiB&budget.team-a=64kB&policy=lfu&ttl=2h&high=95%&low=0.8")
    assert isinstance(backend, Budgeted)
    assert backend.budget == Budget(1 << 20, {"team-a": 64_000}, high=0.95, low=0.8)
    assert backend.policy.name == "lfu"
    put(backend, 0)
    entry = found(backend, 0)
    assert entry is not None
    assert entry.expires_at == CREATED_AT + 7200
    backend.close()


def test_without_options_nothing_is_around_a_store(tmp_path: Path) -> None:
    backend = opened(tmp_path, "codec=raw")
    assert not isinstance(backend, Budgeted)
    backend.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("budget=plenty", "budget: 'plenty' is not a size such as 50GiB"),
        ("budget=0", "budget in all: at least one byte, not 0"),
        ("budget.a=1kg", "budget.a: '1kg' is not a size"),
        ("policy=fifo", "eviction policy 'fifo' is not known; one of learned"),
        ("ttl=soon", "ttl: 'soon' is not a time such as 7d"),
        ("ttl=0s", "ttl: 0 would keep nothing"),
        ("budget=1GB&ttl=7d&budget=2GB", "budget is given twice"),
        ("budget.team%20a=1GB", "namespace 'team a': a name is 1 to 64 of letters"),
        ("budget.=1GB", "namespace '': a name is 1 to 64"),
        ("high=0.9", "high: a share of what? give a budget= as well"),
        ("ttl=7d&high=0.9&low=0.8", "high, low: a share of what?"),
        ("budget=1GB&high=95", "high: 95 is no share of a budget: above 0, and at most 1 or 100%"),
        ("budget=1GB&high=120%25", "high: 1.2 is no share"),
        ("budget=1GB&low=0", "low: 0 is no share"),
        ("budget=1GB&low=-0.5", "low: '-0.5' is not a share such as 0.95 or 95%"),
        ("budget=1GB&low=most", "low: 'most' is not a share"),
        ("budget=1GB&low=1e-1", "low: '1e-1' is not a share"),
        ("budget=1GB&low=", "low: '' is not a share"),
        ("budget=1GB&high=0.9&low=90%", "low: 0.9 is not below high, 0.9"),
        ("budget=1GB&low=100%", "low: 1 is not below high, 1: above high room is made"),
        ("budget=1GB&high=0.9&high=0.8", "high is given twice"),
    ],
)
def test_options_that_mean_nothing(tmp_path: Path, options: str, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)) as caught:
        opened(tmp_path, options)
    assert "store URL 'file://" in str(caught.value)


def test_a_full_store_costs_a_put_and_no_request(tmp_path: Path) -> None:
    with open_store(f"file://{tmp_path}/store?budget=100") as store:
        state = make_state(1)
        boundary = plan([[1] * 40], IDENTITY.fingerprint, ChunkRule()).boundaries[-1]
        outcome = store.put(
            IDENTITY,
            boundary.key,
            state,
            token_digest=boundary.token_digest,
            role=boundary.role,
        )
        assert outcome is PutOutcome.DROPPED
        assert store.get(IDENTITY, boundary.key) is None
