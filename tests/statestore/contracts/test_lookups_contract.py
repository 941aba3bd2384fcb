"""What every tally of lookups owes; it plugs in as in `test_backend_contract`."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from statestore import open_store
from statestore.backends import lookup_tally
from statestore.backends.base import Backend
from statestore.backends.lookup_tally import LookupTally
from statestore.backends.lookups import Lookups, LookupSums, lookups_of
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.file import open_file_backend
from statestore.backends.sql.lookups import SqlLookups
from statestore.backends.tiers.backend import Tier, Tiered
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.faulty import Fail, Fault, Faulty
from statestore.entry import Role
from statestore.errors import ClosedError, UnavailableError
from statestore.metrics import Metrics
from statestore.store import PutOutcome, StateStore
from tests.places.backend_places import (
    FilePlace,
    MemoryPlace,
    Place,
    PlaceContract,
    a_key,
    digest,
)
from tests.places.states import IDENTITY, make_state

MODEL, OTHER = digest("model"), digest("other model")


def some(namespace: str = "default", model: bytes = MODEL, tier: str = "") -> LookupSums:
    return LookupSums(tier, namespace, model, 4, 3, 1000, 700, 0.125, since=50.0)


def put(store: StateStore, number: int, cost_s: float = 0.0) -> None:
    """The state of `a_key(number)`."""
    key = a_key(number)
    options = {"token_digest": key.digest, "role": Role.SEGMENT, "cost_s": cost_s, "durable": True}
    assert store.put(IDENTITY, key, make_state(number), **options) is PutOutcome.PUBLISHED


def tally_of(backend: Backend) -> Lookups:
    tally = lookups_of(backend)
    assert tally is not None
    return tally


def known(tally: Lookups, namespace: str | None = None) -> set[LookupSums]:
    rows = tally.sums(namespace)
    assert len({row.whose for row in rows}) == len(rows)
    return set(rows)


class LookupsContract(PlaceContract):
    """Inherit and give `place`."""

    @pytest.fixture
    def tally(self, backend: Backend) -> Lookups:
        return tally_of(backend)

    def test_nothing_was_asked_at_first(self, tally: Lookups) -> None:
        assert known(tally) == set()
        tally.add([])
        assert known(tally) == set()

    def test_what_is_added_is_summed_by_whose_it_is(self, tally: Lookups, place: Place) -> None:
        names = ["default", "tenant ü", "a:b%"]
        tally.add([some(), some(names[1]), some(names[2], OTHER, "memory")])
        tally.add([replace(some(), lookups=2, found=0, since=70.0), some(model=OTHER)])
        with closing(place.open()) as another:
            found = known(tally_of(another))
        assert found == {
            LookupSums("", "default", MODEL, 6, 3, 2000, 1400, 0.25, 50.0),
            some(model=OTHER),
            some(names[1]),
            some(names[2], OTHER, "memory"),
        }
        assert known(tally, names[1]) == {some(names[1])}
        assert known(tally, "nobody") == set()

    def test_large_sums_stay_whole(self, tally: Lookups) -> None:
        large = LookupSums("", "default", MODEL, 1 << 40, 1 << 39, 1 << 60, 1 << 59, 2.0**40, 1.5)
        tally.add([large])
        tally.add([some()])
        (row,) = known(tally)
        assert row == large + some()
        assert row.tokens_asked == (1 << 60) + 1000

    def test_many_add_at_once(self, tally: Lookups, place: Place) -> None:
        rows = [some(), some("tenant"), some(model=OTHER)]

        def work(number: int) -> None:
            with closing(place.open()) as backend:
                for _ in range(5):
                    self.add(tally_of(backend), rows if number % 2 else rows[::-1])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        assert {row.whose: row.lookups for row in known(tally)} == dict.fromkeys(
            (row.whose for row in rows), 80
        )

    def add(self, tally: Lookups, rows: list[LookupSums]) -> None:
        """Until it is not busy."""
        ends = time.monotonic() + 60
        while True:
            try:
                return tally.add(rows)
            except UnavailableError:
                if time.monotonic() > ends:
                    raise

    def test_a_closed_place_takes_none(self, place: Place) -> None:
        backend = place.open()
        backend.close()
        with pytest.raises(ClosedError, match="was closed"):
            tally_of(backend).add([some()])


class TestFileLookups(LookupsContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return FilePlace(tmp_path / "store")


class TestMemoryLookups(LookupsContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return MemoryPlace(f"lookups {tmp_path.name}")


def bounded(tally: Lookups) -> None:
    """The contract of one that keeps ten rows."""
    for number in range(12):
        tally.add([some(f"tenant {number}"), some(f"tenant {number}", tier="memory")])
    rows = {row.whose: row for row in known(tally)}
    kept = {row for row in rows if row[1]}
    assert kept == {(tier, f"tenant {n}", MODEL) for n in range(5) for tier in ("", "memory")}
    assert {row: rows[row].lookups for row in rows.keys() - kept} == {
        ("", "", b""): 28,
        ("memory", "", b""): 28,
    }
    tally.add([some("tenant 3"), some("new")])
    assert {row.lookups for row in known(tally, "tenant 3")} == {8, 4}


def test_in_sql_rows_are_bounded(tmp_path: Path) -> None:
    with closing(open_file_backend(tmp_path)) as backend:
        assert isinstance(backend, SqlBackend)
        bounded(SqlLookups(backend._database, 10))


# What a process counts


def counted(backend: Backend, tally: LookupTally) -> list[tuple[object, ...]]:
    assert tally.flush(60)
    return sorted(
        (row.tier, row.namespace, row.lookups, row.found, row.tokens_asked, row.tokens_found)
        for row in tally_of(backend).sums()
    )


def test_a_lookup_is_counted_once_and_written_later() -> None:
    backend = MemoryBackend()
    tally = LookupTally(backend, Metrics(), clock=lambda: 12.0)
    for found in (0, 300, 0, 100):
        tally.note("default", MODEL, 300, tokens_found=found, seconds_found=found / 100)
    assert counted(backend, tally) == [("", "default", 4, 2, 1200, 400)]
    (row,) = tally_of(backend).sums()
    assert (row.seconds_found, row.since) == (4.0, 12.0)
    assert counted(backend, tally) == [("", "default", 4, 2, 1200, 400)]
    tally.close()


def test_by_itself_it_is_written_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_tally, "EVERY_S", 0.01)
    backend = MemoryBackend()
    tally = LookupTally(backend, Metrics())
    for round_ in (1, 2):
        tally.note("default", MODEL, 300)
        ends = time.monotonic() + 60
        while sum(row.lookups for row in tally_of(backend).sums()) < round_:
            assert time.monotonic() < ends
            time.sleep(0.01)
    tally.close()


def test_its_thread_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_tally, "EVERY_S", 0.01)

    def theirs() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "lookup-tally"]

    before = set(theirs())
    closed, dropped = (LookupTally(MemoryBackend(), Metrics()) for _ in range(2))
    for tally in (closed, dropped):
        tally.note("default", MODEL, 300)
    started = set(theirs()) - before
    assert len(started) == 2
    closed.close()
    del dropped, tally
    gc.collect()
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


def test_what_a_place_does_not_take_is_kept_until_it_does() -> None:
    metrics, faulty = Metrics(), Faulty(MemoryBackend())
    faulty.faults = (Fault(("add",), Fail(UnavailableError("down"))),)
    tally = LookupTally(faulty, metrics)
    tally.note("default", MODEL, 300)
    assert not tally.flush(60)
    tally.note("default", MODEL, 300, tokens_found=200)
    tally.note("tenant", MODEL, 10)
    assert not tally.flush(60)
    assert metrics.value("errors_total", operation="tally") == 2
    faulty.faults = ()
    assert counted(faulty, tally) == [
        ("", "default", 2, 1, 600, 200),
        ("", "tenant", 1, 0, 10, 0),
    ]
    tally.close()


def test_many_of_whom_nobody_knows_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_tally, "ROWS", 10)
    faulty = Faulty(MemoryBackend(), Fault(("add",), Fail(UnavailableError("down"))))
    tally = LookupTally(faulty, Metrics())
    for number in range(40):
        tally.note(f"tenant {number % 20}", MODEL, 100)
        if not number % 9:
            tally.flush()
        assert len(tally._counts) <= 12
    faulty.faults = ()
    rows = counted(faulty, tally)
    assert sum(row[2] for row in rows) == 40
    assert [row[1] for row in rows].count("") == 1
    tally.close()


class Without(Wrapper):
    """A place that keeps none."""

    @property
    def lookups(self) -> Lookups | None:
        return None


def test_a_place_without_one_is_no_error() -> None:
    tally = LookupTally(Without(MemoryBackend()), Metrics())
    tally.note("default", MODEL, 300)
    assert tally.flush(60)
    tally.close()


def test_threads_lose_no_count() -> None:
    backend = MemoryBackend()
    tally = LookupTally(backend, Metrics())

    def work(number: int) -> None:
        for _ in range(500):
            tally.note("default", MODEL, 3, tokens_found=number % 2)
            if number == 0:
                tally.flush()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert counted(backend, tally) == [("", "default", 2000, 1000, 6000, 1000)]
    tally.close()


def test_a_forked_child_counts_its_own(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        store.find(IDENTITY, [a_key(1)])
        child = os.fork()
        if not child:
            code = 1
            try:
                store.find(IDENTITY, [a_key(1)])
                store.find(IDENTITY, [a_key(1)])
                store.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert [row.lookups for row in tally_of(store.backend).sums()] == [2]
        store.flush()
        assert [row.lookups for row in tally_of(store.backend).sums()] == [3]


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_the_end_of_a_process_writes_what_it_counted(end: str, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from statestore import open_store, Identity, StateKey;"
        "from statestore.backends.ending import flush_on_sigterm; flush_on_sigterm();"
        "store = open_store(sys.argv[1]);"
        f"store.find(Identity(bytes(32)), [StateKey(bytes(32), 7)]); {end}"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=120, check=False)
    with open_store(str(tmp_path)) as store:
        (row,) = tally_of(store.backend).sums()
    assert (row.lookups, row.tokens_asked, row.namespace) == (1, 7, "default")


def test_a_signal_in_the_midst_of_counting_ends_the_process(tmp_path: Path) -> None:
    """Its handler runs while the lock is held by what it has interrupted, which keeps it."""
    code = (
        "import os, signal, sys; from statestore import open_store, Identity, StateKey;"
        "from statestore.backends.ending import flush_on_sigterm; flush_on_sigterm();"
        "store = open_store(sys.argv[1]);"
        "store.find(Identity(bytes(32)), [StateKey(bytes(32), 7)]);"
        "store._tally._lock.acquire(); os.kill(os.getpid(), signal.SIGTERM);"
        "[signal.pause() for _ in iter(int, 1)]"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, timeout=120, check=False).returncode == -signal.SIGTERM


# What a store counts


def rows_of(store: StateStore) -> list[tuple[object, ...]]:
    store.flush(60)
    return sorted(
        (row.tier, row.lookups, row.found, row.tokens_asked, row.tokens_found, row.seconds_found)
        for row in tally_of(store.backend).sums()
    )


def test_a_find_of_a_prompt_is_one_lookup(tmp_path: Path) -> None:
    with open_store(str(tmp_path)) as store:
        put(store, 3, cost_s=2.0)
        assert store.find(IDENTITY, [a_key(9), a_key(3)]) is not None
        assert store.get(IDENTITY, a_key(3)) is not None
        assert store.find(IDENTITY, [a_key(9)]) is None
        assert store.find(IDENTITY, [a_key(9), a_key(3)], tally=False) is not None
        assert store.find(IDENTITY, []) is None
        n9, n3 = a_key(9).n_tokens, a_key(3).n_tokens
        assert rows_of(store) == [("", 3, 2, 2 * n9 + n3, 2 * n3, 4.0)]
        list(store.list())
        assert store.check(next(store.list())) == ""
        assert rows_of(store)[0][1] == 3


def test_what_a_place_cannot_answer_is_no_lookup() -> None:
    faulty = Faulty(MemoryBackend(), Fault(("longest",), Fail(UnavailableError("down"))))
    with StateStore(faulty) as store:
        assert store.find(IDENTITY, [a_key(1)]) is None
        assert rows_of(store) == []


def test_a_store_that_takes_no_counts_answers_all_the_same(tmp_path: Path) -> None:
    faulty = Faulty(MemoryBackend())
    with StateStore(faulty) as store:
        put(store, 1)
        faulty.faults = (Fault(("add",), Fail(UnavailableError("read-only"))),)
        assert store.find(IDENTITY, [a_key(1)]) is not None
        assert store.flush(60)
        assert store.metrics.value("errors_total", operation="tally") == 1


def test_tiers_count_what_each_was_asked(tmp_path: Path) -> None:
    near, home = MemoryBackend(), open_file_backend(tmp_path)
    with StateStore(Tiered([Tier("memory", near), Tier("file", home)])) as store:
        put(store, 3, cost_s=2.0)
        assert near.delete(a_key(3), "a test")
        n3, n9 = a_key(3).n_tokens, a_key(9).n_tokens
        assert store.find(IDENTITY, [a_key(9), a_key(3)], touch=False) is not None  # from the file
    with closing(open_file_backend(tmp_path)) as again:
        rows = {row.tier: row for row in tally_of(again).sums()}
    assert (rows["memory"].lookups, rows["memory"].found, rows["memory"].tokens_asked) == (1, 0, n9)
    assert (rows[""].lookups, rows[""].found, rows[""].tokens_found) == (1, 1, n3)
    assert rows[""].seconds_found == 2.0


def places(tmp_path: Path) -> list[Backend]:
    return [MemoryBackend(), *(open_file_backend(tmp_path / name) for name in ("middle", "home"))]


def test_each_tier_keeps_its_own(tmp_path: Path) -> None:
    memory, middle, home = places(tmp_path)
    names = ["memory", "file", "file2"]
    tiers = [Tier(n, b) for n, b in zip(names, (memory, middle, home), strict=True)]
    with closing(Tiered(tiers)) as tiered:
        tally = LookupTally(tiered, Metrics())
        tally.note("default", MODEL, 100)  # nowhere
        tally.note("default", MODEL, 100, tier="memory", tokens_found=100)  # no other was asked
        tally.note("default", MODEL, 100, tier="memory", tokens_found=40)  # others had no more
        tally.note("default", MODEL, 100, tier="file", tokens_found=100)
        tally.note("default", MODEL, 100, tier="file2", tokens_found=60)
        assert tally.flush(60)

        def seen(backend: Backend) -> dict[str, tuple[int, int, int]]:
            return {
                row.tier: (row.lookups, row.found, row.tokens_found)
                for row in tally_of(backend).sums()
            }

        assert seen(memory) == {}
        assert seen(middle) == {"": (4, 1, 100)}
        assert seen(home) == {"": (3, 1, 60), "memory": (5, 2, 140)}
        assert seen(tiered) == {"memory": (5, 2, 140), "file": (4, 1, 100), "file2": (3, 1, 60)}
        tally.close()


def test_a_tier_that_is_down_keeps_no_other_from_counting(tmp_path: Path) -> None:
    _, middle, home = places(tmp_path)
    faulty = Faulty(home, Fault(("add",), Fail(UnavailableError("down"))))
    with closing(Tiered([Tier("near", middle), Tier("home", faulty)])) as tiered:
        tally_of(tiered).add([some()])
        assert known(tally_of(middle)) == {
            replace(some(), found=0, tokens_found=0, seconds_found=0)
        }
        tally = LookupTally(Tiered([Tier("home", faulty)]), Metrics())
        tally.note("default", MODEL, 5)
        assert not tally.flush(60), "no tier took it: it is kept"
        faulty.faults = ()
        assert tally.flush(60)
        tally.close()
