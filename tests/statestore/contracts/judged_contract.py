"""What every backend owes a judge: a part of `EvictionContract`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from statestore.backends.base import Backend
from statestore.entry import Candidate, Change, Entry, EntryFilter, Evicted, Role, Status
from statestore.keys import StateKey
from tests.places.backend_places import (
    CREATED_AT,
    Place,
    PlaceContract,
    a_key,
    an_entry,
    publish,
    publish_all,
)

NOW = CREATED_AT + 10_000
MOST = 16 * 8  # drawn for one: a Cluster draws some from each of its shards


class Bench:
    """A judge that knows each entry's worth by its number, and what it was shown."""

    def __init__(self, worth: Callable[[int], float] = float) -> None:
        self.calls: list[list[Candidate | Entry]] = []
        self._worth = worth

    def __call__(self, entries: Sequence[Candidate | Entry], now: float) -> list[float]:
        assert now == NOW
        self.calls.append(list(entries))
        return [self._worth(entry.key.n_tokens - 1) for entry in entries]

    @property
    def shown(self) -> set[int]:
        return {entry.key.n_tokens - 1 for call in self.calls for entry in call}


def left(backend: Backend) -> set[int]:
    return {entry.key.n_tokens - 1 for entry in backend.entries(EntryFilter())}


def fill(backend: Backend, count: int, **fields: object) -> None:
    """Entries 0, 1, ... of 100 bytes, scored as their numbers."""
    entries = (
        an_entry(number, **{"blob_bytes": 100, "score": float(number), **fields})
        for number in range(count)
    )
    publish_all(backend, entries)


class JudgedContract(PlaceContract):
    """Inherit and give `place` and `crowd`."""

    def test_what_is_ranked_lowest_goes_whatever_its_score(
        self, backend: Backend, place: Place
    ) -> None:
        fill(backend, 20)
        worst = Bench(lambda number: -number)
        assert backend.evict(1700, NOW, judge=worst) == Evicted(3, 300)
        assert left(backend) == set(range(17))
        assert place.blob_names() == {entry.blob for entry in backend.entries(EntryFilter())}
        assert backend.usage().age == 0.0  # by a score nobody went
        assert backend.departed([a_key(19)])[a_key(19)].reason == "evicted"
        assert backend.evict(1700, NOW, judge=worst) == Evicted(0, 0)
        assert backend.evict(1600, NOW, judge=worst) == Evicted(1, 100)
        assert left(backend) == set(range(16))

    def test_a_judge_is_shown_what_it_judges_by(self, backend: Backend) -> None:
        entry = an_entry(
            0, role=Role.FORK, hits=3, ancestor_tokens=7, memo="1 c 3 2 512 1024", score=5.0
        )
        entry = replace(entry, used_at=CREATED_AT + 0.1)
        publish(backend, entry)
        bench = Bench()
        backend.evict(0, NOW, judge=bench)
        (shown,) = bench.calls[0]
        for name in Candidate._fields:
            assert getattr(shown, name) == getattr(entry, name), name

    def test_what_has_expired_is_barred_or_passing_goes_unjudged(self, backend: Backend) -> None:
        fill(backend, 8)
        for number, fields in enumerate(
            ({"expires_at": NOW - 1}, {"score": -1e11}, {"score": -1e12}), start=8
        ):
            publish(backend, an_entry(number, blob_bytes=100, **{"score": 9.0, **fields}))
        backend.update(a_key(7), Change(status=Status.QUARANTINED, reason="bad"))
        bench = Bench()
        for goes in (8, 7, 10, 9):
            before = left(backend)
            held = backend.usage().blob_bytes
            assert backend.evict(held - 100, NOW, judge=bench) == Evicted(1, 100)
            assert before - left(backend) == {goes}
        assert backend.evict(500, NOW, judge=bench) == Evicted(2, 200)
        assert left(backend) == {2, 3, 4, 5, 6}
        assert not bench.shown & {7, 8}

    def test_pinned_entries_are_not_even_judged(self, backend: Backend) -> None:
        fill(backend, 4)
        backend.update(a_key(0), Change(pinned=True))
        publish(backend, an_entry(4, blob_bytes=100, score=0.5, pinned=True))
        bench = Bench()
        assert backend.evict(0, NOW, judge=bench) == Evicted(3, 300)
        assert left(backend) == {0, 4}
        assert bench.shown == {1, 2, 3}
        assert backend.evict(0, NOW, judge=bench) == Evicted(0, 0)

    def test_a_namespace_is_judged_by_itself(self, backend: Backend) -> None:
        for number in range(12):
            name = ("a", "a\x01", "ü b")[number % 3]
            publish(backend, an_entry(number, blob_bytes=100, score=1.0, namespace=name))
        bench = Bench()
        assert backend.evict(200, NOW, namespace="ü b", judge=bench) == Evicted(2, 200)
        assert bench.shown == {2, 5, 8, 11}
        assert left(backend) == set(range(12)) - {2, 5}
        assert backend.evict(0, NOW, namespace="a", judge=bench).entries == 4
        assert backend.evict(0, NOW, namespace="nobody", judge=bench) == Evicted(0, 0)
        assert left(backend) == {1, 4, 7, 10, 8, 11}

    def test_a_limit_ends_a_judged_call(self, backend: Backend) -> None:
        fill(backend, 7)
        gone = [backend.evict(0, NOW, limit=3, judge=Bench()).entries for _ in range(4)]
        assert gone == [3, 3, 1, 0]

    def test_hundreds_are_judged_in_one_call(self, backend: Backend, place: Place) -> None:
        fill(backend, 300, blob_bytes=10)
        assert backend.evict(200, NOW, limit=1000, judge=Bench()) == Evicted(280, 2800)
        assert len(left(backend)) == len(place.blob_names()) == 20

    def test_a_sample_is_drawn_anew_for_each_call(self, backend: Backend) -> None:
        """Of hundreds no more is read than the sample; the least of 64 is in the lowest quarter but
        for one time in 10**8. Twelve such draws show less than 257 one time in ten, 36 never did.
        """
        fill(backend, 300, namespace="one")
        bench = Bench()
        for number in range(36):
            before = left(backend)
            namespace = "one" if number % 2 else None
            held = backend.usage().blob_bytes
            gone = backend.evict(held - 100, NOW, namespace=namespace, judge=bench)
            assert gone == Evicted(1, 100)
            (goes,) = before - left(backend)
            assert goes < 75 or number >= 12  # the lowest quarter thins out
        assert all(len(call) <= MOST for call in bench.calls)
        assert len(bench.shown) > 2 * MOST

    def test_evictors_with_a_judge_remove_no_more_than_one_would(
        self, backend: Backend, crowd: list[Backend], place: Place
    ) -> None:
        fill(backend, 60)
        with ThreadPoolExecutor(8) as threads:
            calls = [
                threads.submit(crowd[n % 4].evict, 2000, NOW, judge=Bench(lambda number: -number))
                for n in range(8)
            ]
            removed = [call.result() for call in calls]
        assert sum(evicted.entries for evicted in removed) == 40
        assert left(backend) == set(range(20))
        assert backend.usage().blob_bytes == 2000
        assert len(place.blob_names()) == 20

    def test_one_that_is_used_after_the_look_is_no_error(self, backend: Backend) -> None:
        fill(backend, 3)
        backend.touch(an_entry(0), NOW, 10.0, memo="1 a 1 0 512 1024")

        def judge(entries: Sequence[Candidate | Entry], now: float) -> list[float]:
            used: dict[StateKey, float] = {entry.key: entry.used_at for entry in entries}
            return [used[entry.key] - now for entry in entries]

        assert backend.evict(100, NOW, judge=judge) == Evicted(2, 200)
        assert left(backend) == {0}
