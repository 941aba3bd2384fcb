"""What every index of seen prefixes owes; it plugs in as in `test_backend_contract`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from statestore.backends.base import Backend
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.sightings import (
    LocalSightings,
    Sightings,
    Unfailing,
    sightings_of,
)
from statestore.backends.sql.file import open_file_backend
from statestore.backends.sql.sightings import SqlSightings
from statestore.backends.tiers.backend import Tier, Tiered
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.faulty import Fail, Fault, Faulty
from statestore.errors import ClosedError, UnavailableError
from statestore.keys import marks
from statestore.metrics import Metrics
from tests.places.backend_places import (
    FilePlace,
    MemoryPlace,
    Place,
    PlaceContract,
    TieredPlace,
    digest,
)


def a_prompt(name: str, ends: int, shared: int = 0, base: str = "") -> list[bytes]:
    """Marks along a prompt whose first `shared` are those of the prompt `base`."""
    return marks([digest(f"{base if end < shared else name} {end}") for end in range(ends)])


def index_of(backend: Backend) -> Sightings:
    index = sightings_of(backend)
    assert index is not None
    return index


class SightingsContract(PlaceContract):
    """Inherit and give `place`."""

    @pytest.fixture
    def index(self, backend: Backend) -> Sightings:
        return index_of(backend)

    @pytest.fixture
    def crowd(self, place: Place) -> Iterator[list[Sightings]]:
        """Those of four more backends that are open on the place."""
        with ExitStack() as stack:
            backends = [stack.enter_context(closing(place.open())) for _ in range(4)]
            yield [index_of(backend) for backend in backends]

    def test_nothing_was_seen_at_first(self, index: Sightings) -> None:
        assert index.seen(a_prompt("a", 5)) == 0
        assert index.seen([]) == 0
        index.note([])
        assert index.seen(a_prompt("a", 1)) == 0

    @pytest.mark.parametrize("shared", [0, 1, 2, 3, 7, 8, 12, 13])
    def test_a_prompt_is_known_as_far_as_one_before_it(
        self, index: Sightings, crowd: list[Sightings], shared: int
    ) -> None:
        index.note(a_prompt("a", 13))
        for one in (index, *crowd[:1]):
            assert one.seen(a_prompt("b", 40, shared, "a")) == shared
            assert one.seen(a_prompt("a", 13)) == 13

    def test_noted_twice_is_noted(self, index: Sightings) -> None:
        for _ in range(3):
            index.note(a_prompt("a", 9))
        assert index.seen(a_prompt("a", 9)) == 9
        index.note([*a_prompt("b", 3), *a_prompt("b", 3)])
        assert index.seen(a_prompt("b", 3)) == 3

    def test_a_million_tokens_at_once(self, index: Sightings) -> None:
        index.note(a_prompt("long", 3906))
        assert index.seen(a_prompt("long", 3906)) == 3906
        assert index.seen(a_prompt("other", 3906, 3000, "long")) == 3000

    def test_many_at_once(self, crowd: list[Sightings]) -> None:
        def work(number: int) -> None:
            index = crowd[number % 4]
            for turn in range(5):
                index.note(a_prompt(f"tail {number} {turn}", 30, 20, f"document {turn}"))

        with ThreadPoolExecutor(8) as threads:
            assert len(list(threads.map(work, range(8)))) == 8
        for number in range(8):
            for turn in range(5):
                whole = a_prompt(f"tail {number} {turn}", 30, 20, f"document {turn}")
                assert crowd[-number % 4].seen(whole) == 30

    def test_states_and_their_totals_do_not_count_it(
        self, backend: Backend, index: Sightings
    ) -> None:
        index.note(a_prompt("a", 100))
        assert backend.usage().entries == 0
        assert backend.sweep(2e9, 0.0).blobs == 0
        assert index.seen(a_prompt("a", 100)) == 100

    def test_it_outlives_whoever_noted(self, place: Place, backend: Backend) -> None:
        """As long as the place does; memory is held open by `backend`."""
        assert index_of(backend).seen(a_prompt("a", 6)) == 0
        with closing(place.open()) as other:
            index_of(other).note(a_prompt("a", 6))
        assert index_of(backend).seen(a_prompt("a", 6)) == 6

    def test_a_closed_place_says_so(self, backend: Backend, index: Sightings) -> None:
        backend.close()
        with pytest.raises(ClosedError, match="was closed"):
            index_of(backend).note(a_prompt("a", 1))


class TestFileSightings(SightingsContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return FilePlace(tmp_path / "store")


class TestMemorySightings(SightingsContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return MemoryPlace(f"sightings {tmp_path.name}")


class TestTieredSightings(SightingsContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        home = FilePlace(tmp_path / "store")
        return TieredPlace(f"sightings {tmp_path.name}", home, home.root.as_uri())


# What is bounded stays so


def test_in_memory_the_newest_are_kept_and_no_more_than_fit() -> None:
    index = LocalSightings(1024)
    for number in range(64):
        index.note(a_prompt(f"{number}", 64))
    assert len(index._prints) == 4 * 1024
    newest = [index.seen(a_prompt(f"{number}", 64)[::-1][:1]) for number in range(56, 64)]
    assert sum(newest) == 8
    oldest = [index.seen([one]) for number in range(16) for one in a_prompt(f"{number}", 64)]
    assert sum(oldest) < 64  # of 1,024


def bounded(index: SqlSightings, rows: Callable[[], int]) -> None:
    """The contract of one whose limit is 100."""
    for number in range(30):
        index.note(a_prompt(f"{number}", 10))
        assert rows() == min(10 * number + 10, 100)
    assert index.seen(a_prompt("20", 10)) == 10
    assert index.seen(a_prompt("19", 10)) == 0
    for _ in range(3):  # what is noted again pushes nothing out
        index.note(a_prompt("29", 10))
    assert index.seen(a_prompt("20", 10)) == 10


def test_in_sql_the_newest_are_kept(tmp_path: Path) -> None:
    with closing(open_file_backend(tmp_path)) as backend:

        def rows() -> int:
            with closing(sqlite3.connect(tmp_path / "catalog.sqlite3")) as connection:
                (count,) = connection.execute("SELECT count(*) FROM sightings").fetchone()
                return int(count)

        bounded(SqlSightings(backend._database, 100), rows)


def test_a_lowered_limit_is_reached_step_by_step(tmp_path: Path) -> None:
    with closing(open_file_backend(tmp_path)) as backend:
        SqlSightings(backend._database).note(a_prompt("long", 6000))
        index = SqlSightings(backend._database, 100)
        for name in ("a", "b"):
            index.note(a_prompt(name, 10))
        assert index.seen(a_prompt("a", 10)) == index.seen(a_prompt("b", 10)) == 10
        assert sum(index.seen([one]) for one in a_prompt("long", 6000)) <= 100


# A place without an index, or with one that fails


class Without(Wrapper):
    """A place that keeps none."""

    @property
    def sightings(self) -> Sightings | None:
        return None


def test_of_tiers_the_last_that_has_one_keeps_it() -> None:
    near, far = MemoryBackend(), MemoryBackend()
    with closing(Tiered([Tier("near", near), Tier("far", Without(far))])) as tiered:
        index_of(tiered).note(a_prompt("a", 3))
        assert index_of(near).seen(a_prompt("a", 3)) == 3
        assert index_of(far).seen(a_prompt("a", 3)) == 0


def test_without_one_it_is_the_process_own() -> None:
    index = Unfailing(sightings_of(Without(MemoryBackend())), Metrics())
    index.note(a_prompt("a", 3))
    assert index.seen(a_prompt("b", 5, 2, "a")) == 2


@pytest.mark.parametrize("error", [UnavailableError("down"), ClosedError("it was closed")])
def test_one_that_fails_is_never_in_the_way(error: UnavailableError | ClosedError) -> None:
    metrics, faulty = Metrics(), Faulty(MemoryBackend())
    index = Unfailing(sightings_of(faulty), metrics)
    index.note(a_prompt("shared", 3))
    faulty.faults = (Fault(("seen", "note"), Fail(error)),)
    assert index.seen(a_prompt("shared", 3)) == 0
    index.note(a_prompt("own", 4))
    assert index.seen(a_prompt("own", 4)) == 4
    assert metrics.value("errors_total", operation="seen") == 2
    assert metrics.value("errors_total", operation="note") == 1
    faulty.faults = ()
    assert index.seen(a_prompt("shared", 3)) == 3
