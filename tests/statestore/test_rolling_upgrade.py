"""A catalog that is upgraded under a process of the release before, which has it open and goes on:
each of its requests is answered, rightly, and what it cannot store is counted.

The release before is this one; the one after it is made up here: a revision that nobody knows, and
tables changed by hand in the ways that revisions have changed them.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import pytest

from statestore import open_store
from statestore.errors import SchemaVersionError
from statestore.tables import HEAD
from tests.places.faulty_system import FaultySystem, shared_systems
from tests.places.postgres_servers import PostgresPlace

NEXT = "9999"
IN_TIME_S = 20.0  # a few calls, each with its deadline, on a busy machine

#: What a revision may do, and the way back.
CHANGES = {
    "a column more": (
        ["ALTER TABLE entries ADD COLUMN warmth INTEGER"],
        ["ALTER TABLE entries DROP COLUMN warmth"],
    ),
    "entries by another name": (
        ["ALTER TABLE entries RENAME TO old_entries"],
        ["ALTER TABLE old_entries RENAME TO entries"],
    ),
    "totals by another name": (
        ["ALTER TABLE namespace_totals RENAME TO all_totals"],
        ["ALTER TABLE all_totals RENAME TO namespace_totals"],
    ),
    "a column by another name": (
        ["ALTER TABLE entries RENAME COLUMN blob TO blob_name"],
        ["ALTER TABLE entries RENAME COLUMN blob_name TO blob"],
    ),
    "leases elsewhere": (
        ["ALTER TABLE leases RENAME TO turns"],
        ["ALTER TABLE turns RENAME TO leases"],
    ),
}
#: Of these an older process notices nothing.
HARMLESS = {"a column more", "leases elsewhere"}


class Place(Protocol):
    url: str

    def run(self, statements: list[str]) -> None: ...


class OfFile:
    def __init__(self, root: Path) -> None:
        self.url = root.as_uri()
        self._path = root / "catalog.sqlite3"

    def run(self, statements: list[str]) -> None:
        with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            for statement in statements:
                connection.execute(statement)
            connection.execute("COMMIT")


class OfFleet:
    def __init__(self, place: PostgresPlace) -> None:
        self.url = place.url + "&timeout_s=1"
        self._place = place

    def run(self, statements: list[str]) -> None:
        place = self._place
        with place.server.connect(place.database) as connection, connection.transaction():
            for statement in statements:
                connection.execute(statement.encode())


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield OfFile(tmp_path / "store")
    else:
        fleet = PostgresPlace(tmp_path)
        yield OfFleet(fleet)
        fleet.drop()


@pytest.fixture
def older(place: Place) -> Iterator[FaultySystem]:
    (process,) = shared_systems(1)
    process.ask(f"reopen({place.url!r})")
    assert process.ask("put(0)") == "published"
    assert process.ask("find(0)") == 0
    yield process
    process.ask("close()")


def set_revision(revision: str) -> str:
    return f"UPDATE alembic_version SET version_num = '{revision}'"


@pytest.mark.parametrize("change", CHANGES)
def test_who_has_it_open_answers_on(place: Place, older: FaultySystem, change: str) -> None:
    up, down = CHANGES[change]
    place.run([*up, set_revision(NEXT)])
    began = time.monotonic()
    asked: list[Any] = [
        older.ask(question)
        for question in ("find(0)", "put(1)", "find(1, 0)", "turn(2, 0.1)", "find(2, 0)") * 2
    ]
    assert time.monotonic() - began < IN_TIME_S
    finds = [asked[at] for at in (0, 2, 4, 5, 7, 9)]
    assert set(finds) <= {None, 0, 1, 2}  # never another's state, nor -1: a wrong one
    assert asked[3] in {"computed", "stored"}
    dropped = older.ask("count('puts_total', outcome='dropped')")
    if change in HARMLESS:
        assert None not in finds
    else:
        assert dropped >= 1
        assert older.ask("count('errors_total', operation='put')") >= 1
    with pytest.raises(SchemaVersionError, match=f"at revision '{NEXT}'.*a newer release made it"):
        open_store(place.url)
    place.run([*down, set_revision(HEAD)])
    until_well(older)
    with open_store(place.url) as store:
        assert store.usage().entries == len(list(store.list()))


def until_well(older: FaultySystem) -> None:
    """Without being opened anew: a breaker may take a moment."""
    deadline = time.monotonic() + 60
    while older.ask("put(3)") not in {"published", "present"} or older.ask("find(3)") != 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_while_the_tables_are_locked_requests_are_answered(
    place: Place, older: FaultySystem
) -> None:
    """A large catalog's upgrade takes its time, within one transaction."""
    locked, done = threading.Event(), threading.Event()

    def upgrade() -> None:
        statements = CHANGES["a column more"][0]
        if isinstance(place, OfFile):
            path = place._path
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(statements[0])
                locked.set()
                done.wait(IN_TIME_S)
                connection.execute("COMMIT")
        else:
            assert isinstance(place, OfFleet)
            fleet = place._place
            with fleet.server.connect(fleet.database) as server, server.transaction():
                server.execute(statements[0].encode())
                locked.set()
                done.wait(IN_TIME_S)

    thread = threading.Thread(target=upgrade)
    thread.start()
    assert locked.wait(IN_TIME_S)
    began = time.monotonic()
    for _ in range(5):
        assert older.ask("find(0)") in {None, 0}
    assert time.monotonic() - began < IN_TIME_S / 2
    done.set()
    thread.join()
    until_well(older)
    assert older.ask("find(0)") == 0
