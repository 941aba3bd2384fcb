"""What every backend owes those who make room; it plugs in as in `test_backend_contract`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from statestore.backends.base import Backend
from statestore.entry import Change, Entry, EntryFilter, Evicted, Status, Usage
from statestore.errors import ClosedError
from tests.places.backend_places import (
    CREATED_AT,
    FilePlace,
    Place,
    a_blob,
    a_key,
    an_entry,
    publish,
    publish_all,
)
from tests.statestore.contracts.judged_contract import JudgedContract
from tests.statestore.workers.backend_worker import unless_busy

NOW = CREATED_AT + 10_000


def stored(backend: Backend) -> set[int]:
    """The numbers of the entries that are listed."""
    return {entry.key.n_tokens - 1 for entry in backend.entries(EntryFilter())}


def fill(backend: Backend, scores: list[float], **fields: object) -> None:
    """Entries 0, 1, ... of 100 bytes each, with these scores."""
    for number, score in enumerate(scores):
        publish(backend, an_entry(number, blob_bytes=100, score=score, **fields))


def summed(entries: list[Entry], age: float) -> Usage:
    barred = sum(entry.status is Status.QUARANTINED for entry in entries)
    return Usage(
        entries=len(entries),
        blob_bytes=sum(entry.blob_bytes for entry in entries),
        state_bytes=sum(entry.state_bytes for entry in entries),
        quarantined=barred,
        pinned=sum(entry.pinned for entry in entries),
        age=age,
        pinned_bytes=sum(entry.blob_bytes for entry in entries if entry.pinned),
    )


@dataclass
class Oracle:
    """What is stored, and what an eviction leaves of it."""

    entries: dict[int, Entry]
    age: float = 0.0

    def among(self, namespace: str | None) -> list[int]:
        return [
            number for number, entry in self.entries.items() if namespace in (None, entry.namespace)
        ]

    def evict(self, to_bytes: int, namespace: str | None, limit: int) -> Evicted:
        held = sum(self.entries[number].blob_bytes for number in self.among(namespace))
        goes = [number for number in self.among(namespace) if not self.entries[number].pinned]
        goes.sort(
            key=lambda number: (
                self.entries[number].status is Status.READY,
                self.entries[number].score,
            )
        )
        count = freed = 0
        for number in goes[:limit]:
            if held - freed <= to_bytes:
                break
            gone = self.entries.pop(number)
            freed += gone.blob_bytes
            count += 1
            if gone.status is Status.READY:
                self.age = max(self.age, gone.score)
        return Evicted(count, freed)


class EvictionContract(JudgedContract):
    """Inherit and give `place`."""

    @pytest.fixture
    def crowd(self, place: Place) -> Iterator[list[Backend]]:
        """Four backends open on one place."""
        with ExitStack() as stack:
            yield [stack.enter_context(closing(place.open())) for _ in range(4)]

    # Which, and how many

    def test_the_lowest_score_goes_first(self, backend: Backend, place: Place) -> None:
        fill(backend, [5.0, 1.5, 9.0, 1.25, 7.0, -3.0])
        assert backend.evict(300, NOW) == Evicted(3, 300)
        assert stored(backend) == {0, 2, 4}
        left = {entry.blob for entry in backend.entries(EntryFilter())}
        assert place.blob_names() == left
        assert len(place.rows()) == 3

    def test_within_the_budget_nothing_goes(self, backend: Backend) -> None:
        assert backend.evict(0, NOW) == Evicted(0, 0)
        fill(backend, [1.0, 2.0, 3.0])
        assert backend.evict(300, NOW) == Evicted(0, 0)
        assert backend.evict(10**15, NOW) == Evicted(0, 0)
        assert stored(backend) == {0, 1, 2}
        assert backend.usage().age == 0.0

    def test_no_more_goes_than_has_to(self, backend: Backend) -> None:
        for number, size in enumerate((100, 200, 300)):
            publish(backend, an_entry(number, blob_bytes=size, score=float(number)))
        assert backend.evict(550, NOW) == Evicted(1, 100)
        assert backend.evict(300, NOW) == Evicted(1, 200)
        assert stored(backend) == {2}

    def test_what_has_expired_goes_first(self, backend: Backend) -> None:
        """Whatever it was worth; and it tells nothing of what the others are."""
        expiring = {0: NOW + 1, 1: NOW - 1, 3: NOW - 2, 5: NOW}
        for number in range(6):
            name = "a" if number < 4 else "b"
            at = expiring.get(number)
            entry = an_entry(number, blob_bytes=100, score=9.0 - number, namespace=name)
            publish(backend, replace(entry, expires_at=at, pinned=number == 3))
        assert backend.evict(300, NOW, namespace="a") == Evicted(1, 100)
        assert stored(backend) == {0, 2, 3, 4, 5}
        assert backend.evict(400, NOW) == Evicted(1, 100)
        assert stored(backend) == {0, 2, 3, 4}  # pinned, and given more time
        assert backend.usage().age == 0.0
        gone = backend.departed([a_key(1), a_key(5)])
        assert {known.reason for known in gone.values()} == {"expired"}
        assert backend.evict(300, NOW) == Evicted(1, 100)
        assert stored(backend) == {0, 2, 3}
        assert backend.usage().age == 5.0
        assert backend.departed([a_key(4)])[a_key(4)].reason == "evicted"

    def test_an_expiry_that_was_changed(self, backend: Backend) -> None:
        fill(backend, [1.0, 2.0, 3.0])
        assert backend.update(a_key(2), Change(expires_at=NOW - 1))
        assert backend.update(a_key(1), Change(expires_at=NOW - 1))
        assert backend.update(a_key(1), Change(expires_at=NOW + 1))
        assert backend.evict(200, NOW) == Evicted(1, 100)
        assert stored(backend) == {0, 1}
        assert backend.evict(100, NOW) == Evicted(1, 100)
        assert stored(backend) == {1}

    def test_blobs_of_no_bytes(self, backend: Backend) -> None:
        publish(backend, an_entry(0, blob_bytes=0, score=1.0))
        publish(backend, an_entry(1, blob_bytes=10, score=2.0))
        publish(backend, an_entry(2, blob_bytes=0, score=3.0))
        assert backend.evict(0, NOW) == Evicted(2, 10)
        assert backend.evict(0, NOW) == Evicted(0, 0)
        assert stored(backend) == {2}

    def test_a_limit_ends_one_call(self, backend: Backend) -> None:
        fill(backend, [float(number) for number in range(7)])
        assert [backend.evict(0, NOW, limit=3).entries for _ in range(4)] == [3, 3, 1, 0]
        assert backend.usage() == Usage(0, 0, 0, 0, 0, age=6.0)

    def test_hundreds_in_one_call(self, backend: Backend, place: Place) -> None:
        scores = [float(number * 7919 % 300) for number in range(300)]
        publish_all(backend, (an_entry(n, blob_bytes=10, score=scores[n]) for n in range(300)))
        assert backend.evict(200, NOW, limit=1000) == Evicted(280, 2800)
        left = {entry.score for entry in backend.entries(EntryFilter())}
        assert left == set(map(float, range(280, 300)))
        assert len(place.blob_names()) == 20

    def test_pinned_entries_stay(self, backend: Backend) -> None:
        fill(backend, [1.0, 2.0, 3.0])
        backend.update(a_key(0), Change(pinned=True))
        publish(backend, an_entry(3, blob_bytes=100, score=0.5, pinned=True))
        assert backend.evict(0, NOW) == Evicted(2, 200)
        assert stored(backend) == {0, 3}
        backend.update(a_key(0), Change(pinned=False))
        assert backend.evict(0, NOW) == Evicted(1, 100)
        assert stored(backend) == {3}

    def test_what_is_quarantined_goes_before_anything_else(self, backend: Backend) -> None:
        fill(backend, [1.0, 2.0, 30.0, 20.0, 40.0])
        for number in (2, 3, 4):
            backend.update(a_key(number), Change(status=Status.QUARANTINED, reason="bad"))
        backend.update(a_key(4), Change(pinned=True))
        assert backend.evict(400, NOW) == Evicted(1, 100)
        assert stored(backend) == {0, 1, 2, 4}
        assert backend.evict(200, NOW) == Evicted(2, 200)
        assert stored(backend) == {1, 4}

    def test_a_touch_and_a_replacement_change_the_order(self, backend: Backend) -> None:
        fill(backend, [1.0, 2.0, 3.0, 4.0])
        backend.touch(an_entry(0), NOW, 10.0)
        backend.update(a_key(1), Change(status=Status.QUARANTINED))
        publish(backend, an_entry(1, blob_bytes=100, score=11.0))
        assert backend.evict(200, NOW) == Evicted(2, 200)
        assert stored(backend) == {0, 1}

    def test_expired_entries_count_until_they_are_swept(self, backend: Backend) -> None:
        fill(backend, [1.0, 2.0], expires_at=NOW - 1)
        assert backend.evict(100, NOW) == Evicted(1, 100)
        assert backend.usage().entries == 1

    # Namespaces

    def test_a_namespace_pays_for_itself_alone(self, backend: Backend) -> None:
        fill(backend, [1.0, 2.0])
        for number in (2, 3, 4):
            publish(backend, an_entry(number, blob_bytes=100, score=50.0 + number, namespace="ü b"))
        backend.update(a_key(0), Change(status=Status.QUARANTINED))
        assert backend.evict(100, NOW, namespace="ü b") == Evicted(2, 200)
        assert stored(backend) == {0, 1, 4}
        assert backend.evict(100, NOW, namespace="ü b") == Evicted(0, 0)
        assert backend.evict(0, NOW, namespace="nobody") == Evicted(0, 0)
        assert backend.evict(0, NOW, namespace="default", limit=1) == Evicted(1, 100)
        assert stored(backend) == {1, 4}

    def test_totals_of_a_namespace(self, backend: Backend) -> None:
        for number in range(12):
            name = "even" if number % 2 == 0 else "odd"
            publish(backend, an_entry(number, blob_bytes=number, namespace=name))
        backend.update(a_key(2), Change(pinned=True))
        backend.update(a_key(4), Change(status=Status.QUARANTINED))
        backend.delete(a_key(11), "deleted")
        assert backend.usage("even") == Usage(6, 30, 60, 1, 1, pinned_bytes=2)
        assert backend.usage("odd") == Usage(5, 25, 50, 0, 0)
        assert backend.usage("neither") == Usage(0, 0, 0, 0, 0)
        assert backend.usage() == Usage(11, 55, 110, 1, 1, pinned_bytes=2)

    def test_an_entry_replaced_by_another_namespaces(self, backend: Backend) -> None:
        """Its salt makes that all but impossible; the totals hold all the same."""
        publish(backend, an_entry(0, blob_bytes=10, namespace="a"))
        backend.update(a_key(0), Change(status=Status.QUARANTINED))
        publish(backend, an_entry(0, blob_bytes=20, namespace="b"))
        assert backend.usage("a") == Usage(0, 0, 0, 0, 0)
        assert backend.usage("b") == backend.usage() == Usage(1, 20, 40, 0, 0)

    # What is known afterwards

    def test_what_was_evicted_is_remembered(self, backend: Backend) -> None:
        fill(backend, [1.0, 2.0, 3.0])
        backend.evict(100, NOW)
        gone = backend.departed([a_key(0), a_key(1), a_key(2)])
        assert set(gone) == {a_key(0), a_key(1)}
        assert {(known.reason, known.departed_at) for known in gone.values()} == {("evicted", NOW)}
        assert backend.longest([a_key(0)], NOW) is None
        assert publish(backend, an_entry(0, blob_bytes=100))
        assert set(backend.departed([a_key(0), a_key(1)])) == {a_key(1)}

    def test_age_is_the_highest_score_evicted(self, backend: Backend, place: Place) -> None:
        fill(backend, [3.5, 2.0, 8.0, 9.0, 10.0])
        assert backend.usage().age == 0.0
        backend.evict(300, NOW)
        assert backend.usage().age == 3.5
        publish(backend, an_entry(5, blob_bytes=100, score=1.0))
        backend.evict(300, NOW)
        assert backend.usage().age == 3.5  # never falls
        backend.evict(200, NOW, namespace="default")
        assert backend.usage().age == 8.0
        backend.delete(a_key(4), "deleted")
        again = place.open()
        assert again.usage().age == again.usage("default").age == 8.0
        again.close()

    def test_what_is_quarantined_does_not_age(self, backend: Backend) -> None:
        """It goes whatever its score, which says nothing of what the others are worth."""
        fill(backend, [1.0, 1e9])
        backend.update(a_key(1), Change(status=Status.QUARANTINED))
        assert backend.evict(100, NOW) == Evicted(1, 100)
        assert backend.usage().age == 0.0

    def test_what_was_read_stays_readable(self, backend: Backend) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        blob = backend.read(entry)
        assert backend.evict(0, NOW) == Evicted(1, 1000)
        assert blob == a_blob(entry.key)
        assert backend.read(entry) is None

    def test_a_blob_that_had_gone_does_not_hinder(self, backend: Backend, place: Place) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        place.remove_blob(entry.blob)
        assert backend.evict(0, NOW).entries == 1
        assert backend.usage().entries == 0

    def test_any_sequence(self, backend: Backend, place: Place) -> None:
        dice = random.Random(20)
        oracle = Oracle({})
        for number in range(120):
            entry = an_entry(
                number,
                blob_bytes=dice.randrange(50),
                namespace=dice.choice("abc"),
                score=dice.random() + oracle.age,
                pinned=dice.random() < 0.1,
            )
            publish(backend, entry)
            if dice.random() < 0.2:
                backend.update(entry.key, Change(status=Status.QUARANTINED))
                entry = replace(entry, status=Status.QUARANTINED)
            oracle.entries[number] = entry
            if number % 4 == 3:
                namespace = dice.choice([None, "a", "b", "c"])
                to_bytes, limit = dice.randrange(800), dice.choice([1, 3, 100])
                expected = oracle.evict(to_bytes, namespace, limit)
                assert backend.evict(to_bytes, NOW, namespace=namespace, limit=limit) == expected
                assert stored(backend) == set(oracle.entries)
        assert oracle.age > 0
        assert len(oracle.entries) < 100
        for name in (None, "a", "b", "c"):
            known = [oracle.entries[number] for number in oracle.among(name)]
            assert backend.usage(name) == summed(known, oracle.age)
        assert place.blob_names() == {entry.blob for entry in oracle.entries.values()}

    # Several at once

    def test_many_evictors_remove_no_more_than_one_would(
        self, backend: Backend, crowd: list[Backend], place: Place
    ) -> None:
        fill(backend, [float(number) for number in range(60)])
        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(crowd[n % 4].evict, 2000, NOW) for n in range(8)]
            removed = [call.result() for call in calls]
        assert sum(evicted.entries for evicted in removed) == 40
        assert sum(evicted.blob_bytes for evicted in removed) == 4000
        assert stored(backend) == set(range(40, 60))
        assert backend.usage() == Usage(20, 2000, 4000, 0, 0, age=39.0)
        assert len(place.blob_names()) == 20

    def test_evictors_among_writers(
        self, backend: Backend, crowd: list[Backend], place: Place
    ) -> None:
        publish_all(backend, (an_entry(n, blob_bytes=100, score=0.5) for n in range(20)))

        def write(seed: int) -> None:
            dice = random.Random(seed)
            mine = crowd[seed % 4]
            for _ in range(30):
                number = dice.randrange(40)
                publish(mine, an_entry(number, blob_bytes=100, score=dice.random()))
                with unless_busy():
                    mine.touch(an_entry(dice.randrange(40)), NOW, dice.random())
                mine.update(a_key(dice.randrange(40)), Change(pinned=dice.random() < 0.1))

        def evict(seed: int) -> int:
            dice = random.Random(seed)
            mine = crowd[seed % 4]
            return sum(mine.evict(dice.randrange(1000), NOW, limit=5).entries for _ in range(20))

        with ThreadPoolExecutor(6) as threads:
            writers = [threads.submit(write, seed) for seed in range(4)]
            evictors = [threads.submit(evict, seed) for seed in range(2)]
            for writer in writers:
                writer.result()
            assert sum(evictor.result() for evictor in evictors) > 0
        listed = list(backend.entries(EntryFilter()))
        usage = backend.usage()
        assert usage == summed(listed, usage.age)
        assert place.blob_names() == {entry.blob for entry in listed}
        pinned = sum(entry.blob_bytes for entry in listed if entry.pinned)
        backend.evict(pinned, NOW)
        assert backend.usage().blob_bytes == pinned

    def test_a_closed_backend_evicts_nothing(self, backend: Backend) -> None:
        backend.close()
        with pytest.raises(ClosedError, match="was closed"):
            backend.evict(0, NOW)


class TestFileEviction(EvictionContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return FilePlace(tmp_path / "store")
