"""A place that could not be opened, for each reason there is, and is there afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from statestore import open_store
from statestore.backends.sightings import Unfailing, sightings_of
from statestore.backends.sql.file import open_file_backend
from statestore.backends.wrappers.late import AGAIN_S, Late
from statestore.entry import EntryFilter
from statestore.errors import ClosedError, SchemaVersionError, StateStoreError, UnavailableError
from statestore.metrics import Metrics
from statestore.tables import HEAD
from tests.places.backend_places import CREATED_AT, a_blob, an_entry, publish

NOW = CREATED_AT + 10_000
CATALOG = "catalog.sqlite3"


def of_another_release(root: Path, revision: str = "9999") -> None:
    with closing(sqlite3.connect(root / CATALOG, isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def a_newer_release(root: Path) -> Callable[[], None]:
    of_another_release(root)
    return lambda: of_another_release(root, HEAD)


def no_catalog(root: Path) -> Callable[[], None]:
    catalog, content = root / CATALOG, (root / CATALOG).read_bytes()
    catalog.write_bytes(b"what is no database " * 400)

    def back() -> None:
        catalog.write_bytes(content)

    return back


def no_directory(root: Path) -> Callable[[], None]:
    away = root.with_name("away")
    root.rename(away)
    root.write_text("a file in its place")

    def back() -> None:
        root.unlink()
        away.rename(root)

    return back


BREAKAGES = {each.__name__: each for each in (a_newer_release, no_catalog, no_directory)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of a store with one entry."""
    root = tmp_path / "store"
    with closing(open_file_backend(root)) as place:
        publish(place, an_entry(0))
    return root


@pytest.fixture(params=BREAKAGES)
def broken(request: pytest.FixtureRequest, root: Path) -> Callable[[], None]:
    """Breaks the store; calling it mends it."""
    return BREAKAGES[request.param](root)


class Watch:
    """A clock that is moved on by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def late(root: Path, broken: Callable[[], None], watch: Watch) -> Iterator[Late]:
    with pytest.raises(StateStoreError) as refused:
        open_file_backend(root)
    place = Late(root.as_uri(), lambda: open_file_backend(root), refused.value, monotonic=watch)
    yield place
    place.close()


def test_until_it_is_there_each_call_is_refused_with_the_reason(late: Late, watch: Watch) -> None:
    entry = an_entry(0)
    for _ in range(2):
        for call in (
            lambda: late.longest([entry.key], NOW),
            lambda: late.read(entry),
            lambda: publish(late, an_entry(1)),
            lambda: late.touch(entry, NOW, 1.0),
            lambda: list(late.entries(EntryFilter())),
            late.usage,
            lambda: late.lookups,
            lambda: sightings_of(late).seen([b"x" * 16]),  # type: ignore[union-attr]
        ):
            with pytest.raises(UnavailableError, match=r"store|catalog"):
                call()
        assert late.leases is None
        assert not late.has_headroom("default")
        watch.seconds += AGAIN_S


def test_it_is_used_once_it_can_be_opened(
    late: Late, broken: Callable[[], None], watch: Watch
) -> None:
    index = Unfailing(sightings_of(late), Metrics())  # as the runtime has it, from its beginning
    entry, marks = an_entry(0), [b"0123456789abcdef"]
    broken()
    with pytest.raises(UnavailableError):  # not tried again so soon
        late.longest([entry.key], NOW)
    watch.seconds += AGAIN_S
    found = late.longest([entry.key], NOW)
    assert found is not None
    assert bytes(late.read(found) or b"") == a_blob(entry.key)
    assert publish(late, an_entry(1))
    assert late.lookups is not None
    assert late.leases is not None
    assert late.leases.acquire(entry.key, "me", 10.0).owner == "me"
    index.note(marks)
    assert late.sightings.seen(marks) == 1


def test_of_a_place_that_is_closed_nothing_is_opened(
    root: Path, broken: Callable[[], None], watch: Watch
) -> None:
    opened = []

    def opening() -> None:
        opened.append(open_file_backend(root))

    late = Late(root.as_uri(), opening, UnavailableError("down"), monotonic=watch)  # type: ignore[arg-type]
    broken()
    late.close()
    watch.seconds += AGAIN_S
    with pytest.raises(ClosedError):
        late.usage()
    assert not opened


def test_a_store_may_be_opened_broken(root: Path) -> None:
    of_another_release(root)
    with pytest.raises(SchemaVersionError):
        open_store(root.as_uri(), absent_ok=True)
    for url in (
        root.as_uri(),
        f"memory: {root.as_uri()}",
        f"{root.as_uri()}?budget=1GiB&find_ms=9",
    ):
        with open_store(url, broken_ok=True) as store:
            with pytest.raises(UnavailableError, match="newer"):
                store.usage()
            assert store.leases is None
