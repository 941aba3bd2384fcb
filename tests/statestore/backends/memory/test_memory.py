"""The memory backend: the contracts, its budget, sharing, forks and threads."""

from __future__ import annotations

import gc
import itertools
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from statestore.backends.base import Backend
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.memory.leases import LocalLeases
from statestore.entry import EntryFilter, Evicted
from statestore.errors import ClosedError, FullError, SettingsError
from statestore.settings import open_store
from tests.places.backend_places import (
    CREATED_AT,
    MemoryPlace,
    Place,
    a_blob,
    a_key,
    an_entry,
    open_backend,
    publish,
)
from tests.statestore.contracts.test_backend_contract import BackendContract
from tests.statestore.contracts.test_eviction_contract import EvictionContract
from tests.statestore.contracts.test_lease_contract import LeaseContract
from tests.statestore.contracts.test_listing_contract import ListingContract

NOW = CREATED_AT + 10_000

names = (f"store-{number}" for number in itertools.count())


class InMemory:
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        place = MemoryPlace(next(names))
        yield place
        place.held.close()


class TestMemoryBackend(InMemory, BackendContract):
    # Nobody else can write to this process's memory.
    test_a_blob_that_grew_is_not_read_beyond_one_byte = None


class TestMemoryListing(InMemory, ListingContract):
    def test_a_sweep_removes_what_no_entry_names_after_a_grace(
        self, backend: Backend, place: Place
    ) -> None:
        """An entry and its blob come in one step: there are no orphans."""
        kept = an_entry(0)
        publish(backend, kept)
        assert backend.sweep(NOW, grace_s=0.0).blobs == 0
        assert place.blob_names() == {kept.blob}


class TestMemoryEviction(InMemory, EvictionContract):
    pass


class TestMemoryLeases(InMemory, LeaseContract):
    pass


# Budget


@pytest.fixture
def small() -> Iterator[Backend]:
    """A private store of 1000 bytes."""
    with closing(open_backend("memory:?budget=1000")) as backend:
        yield backend


def numbers(backend: Backend) -> set[int]:
    return {entry.key.n_tokens - 1 for entry in backend.entries(EntryFilter())}


def put(backend: Backend, number: int, size: int = 300, **fields: Any) -> None:
    score = fields.pop("score", float(number))
    assert publish(backend, an_entry(number, blob_bytes=size, score=score, **fields))


def test_what_was_used_longest_ago_makes_room(small: Backend) -> None:
    for number in range(3):
        put(small, number)
    small.touch(an_entry(0), NOW, 10.0)
    put(small, 3)
    assert numbers(small) == {0, 2, 3}
    put(small, 4, size=700)
    assert numbers(small) == {0, 4}
    assert small.usage().blob_bytes == 1000


def test_what_can_never_fit_is_refused_and_evicts_nothing(small: Backend) -> None:
    put(small, 0)
    with pytest.raises(FullError, match="1001 bytes is larger than the budget of memory, 1000"):
        put(small, 1, size=1001)
    assert numbers(small) == {0}


def test_pinned_states_are_not_evicted_for_others(small: Backend) -> None:
    put(small, 0, size=600, pinned=True)
    put(small, 1)
    with pytest.raises(FullError, match="beside 1 pinned states in memory's 1000 bytes"):
        put(small, 2, size=500)
    assert 0 in numbers(small)


def test_touches_leave_no_heap_behind(small: Backend) -> None:
    put(small, 0)
    for at in range(10_000):
        small.touch(an_entry(0), NOW, float(at))
    assert len(small.room().shelf._orders[None]) < 100  # type: ignore[attr-defined]
    assert small.evict(0, NOW) == Evicted(1, 300)


# Sharing


def test_private_stores_are_apart() -> None:
    with closing(open_backend("memory:")) as one, closing(open_backend("memory:")) as two:
        put(one, 0)
        assert two.usage().entries == 0


def test_a_shared_store_ends_with_the_last_that_has_it_open() -> None:
    first, second = open_backend("memory://shared"), open_backend("memory://shared?budget=2KiB")
    put(first, 0)
    first.close()
    assert numbers(second) == {0}
    with pytest.raises(FullError, match="2048 bytes"):
        put(second, 1, size=3000)
    second.close()
    gc.collect()
    with closing(open_backend("memory://shared")) as third:
        assert numbers(third) == set()
        put(third, 1, size=3000)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory:states", "a name and no path"),
        ("memory://name/path", "a name and no path"),
        ("memory:?budget=some", "budget: 'some' is not a size such as"),
        ("memory:?budget=1XB", "is not a size"),
        ("memory:?size=1", "unknown option 'size'"),
    ],
)
def test_a_bad_url_is_named(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        open_store(url)


def test_a_read_blob_is_shared_aligned_and_cannot_be_written() -> None:
    with closing(open_backend("memory:")) as backend:
        put(backend, 0, size=1 << 20)
        entry = backend.longest([a_key(0)], NOW)
        one, two = backend.read(entry), backend.read(entry)
        assert one.readonly
        assert one.obj is two.obj
        assert one.obj.ctypes.data % 64 == 0 or len(one) < len(one.obj)
        assert one == a_blob(a_key(0), 1 << 20)


# Forks and threads


def test_a_forked_child_begins_empty_with_locks_of_its_own() -> None:
    backend = open_backend("memory://forked")
    put(backend, 0)
    backend.leases.acquire(a_key(0), "parent", 60.0)
    taken, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with backend.room().lock:
            taken.set()
            go_on.wait()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    taken.wait()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert numbers(backend) == set()
            assert backend.leases.acquire(a_key(0), "child", 60.0).owner == "child"
            put(backend, 1)
            with closing(open_backend("memory://forked")) as again:
                assert numbers(again) == {1}
            status = 0
        finally:
            os._exit(status)
    _, code = os.waitpid(child, 0)
    go_on.set()
    holder.join()
    assert code == 0
    assert numbers(backend) == {0}
    backend.close()


def test_threads_never_see_half_a_state_and_the_budget_holds() -> None:
    with closing(open_backend("memory:?budget=20000")) as backend:

        def work(seed: int) -> int:
            dice = random.Random(seed)
            seen = 0
            for _ in range(400):
                number = dice.randrange(40)
                publish(backend, an_entry(number, blob_bytes=dice.randrange(2000)))
                found = backend.longest([a_key(dice.randrange(40))], NOW)
                if found is not None:
                    backend.touch(found, NOW, dice.random())
                    blob = backend.read(found)
                    assert blob is None or blob == a_blob(found.key, found.blob_bytes)
                    seen += blob is not None
                assert backend.usage().blob_bytes <= 20_000
            return seen

        with ThreadPoolExecutor(4) as threads:
            assert sum(threads.map(work, range(4))) > 100
        listed = list(backend.entries(EntryFilter()))
        assert backend.usage().blob_bytes == sum(entry.blob_bytes for entry in listed)


def test_a_closed_backend_gives_no_leases() -> None:
    backend = MemoryBackend()
    leases = backend.leases
    assert leases is not None
    backend.close()
    with pytest.raises(ClosedError):
        leases.acquire(a_key(0), "me", 1.0)


def test_lapsed_leases_are_not_kept() -> None:
    now = [0.0]
    leases = LocalLeases(lambda: now[0])
    for number in range(3000):
        now[0] += 1.0
        leases.acquire(replace(a_key(0), n_tokens=number + 1), "me", 5.0)
    assert len(leases._held) < 1100
