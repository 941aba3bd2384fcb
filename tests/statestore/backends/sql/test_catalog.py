"""The SQL catalog: queries use indexes, memory of removals is bounded, failures have names."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from statestore.backends.sql import departures
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.catalog import page
from statestore.backends.sql.database import Database, Fault
from statestore.backends.sql.migrate import bring_to_head
from statestore.backends.sql.sqlite import classify, open_database
from statestore.blobs.filesystem import FilesystemBlobs
from statestore.entry import EntryFilter, Status
from statestore.errors import FullError, InputError, UnavailableError
from statestore.tables import departed, totals
from tests.places.backend_places import CREATED_AT, a_key, an_entry, digest, publish


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(tmp_path / "catalog.sqlite3", patience_s=60)
    bring_to_head(database)
    yield database
    database.close()


@pytest.fixture
def backend(database: Database, tmp_path: Path) -> SqlBackend:
    (tmp_path / "blobs").mkdir()
    return SqlBackend(database, FilesystemBlobs(tmp_path / "blobs"), tmp_path.as_uri())


def statements_of(database: Database, call: Callable[[], Any]) -> list[tuple[str, list[str]]]:
    """The SELECTs that `call` sends, each with SQLite's plan for it."""
    seen: list[tuple[str, list[str]]] = []

    def note(
        connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> None:
        if statement.startswith(("SELECT", "WITH")):
            driver = connection.connection.dbapi_connection
            plan = driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            seen.append((statement, [step[3] for step in plan]))

    shortcut = database._shortcut
    assert shortcut is not None
    rows = shortcut.rows

    def noted_rows(text: str, parameters: Any, until: float | None = None) -> Any:
        plan = rows(f"EXPLAIN QUERY PLAN {text}", parameters)
        seen.append((text, [step[3] for step in plan]))
        return rows(text, parameters, until)

    event.listen(database._reader, "before_cursor_execute", note)
    shortcut.rows = noted_rows  # type: ignore[method-assign]
    call()
    shortcut.rows = rows  # type: ignore[method-assign]
    event.remove(database._reader, "before_cursor_execute", note)
    return seen


def test_the_longest_of_thousands_is_one_query(database: Database, backend: SqlBackend) -> None:
    publish(backend, an_entry(4000))
    keys = [a_key(number) for number in range(5000)]
    assert len(statements_of(database, lambda: backend.longest(keys, CREATED_AT))) == 1
    assert len(statements_of(database, lambda: backend.longest(keys[:3000], CREATED_AT))) == 1


@pytest.mark.parametrize(
    ("call", "index"),
    [
        (lambda it: it.longest([a_key(0), a_key(1)], CREATED_AT), "sqlite_autoindex_entries_1"),
        (lambda it: next(it.entries(EntryFilter()), None), "ix_entries_used_at"),
        (
            lambda it: list(it.entries(EntryFilter(namespace="n", token_digest=digest("t")))),
            "ix_entries_token_digest",
        ),
        (
            lambda it: list(it.entries(EntryFilter(namespace="n", fingerprint=digest("f")))),
            "ix_entries_model",
        ),
        (
            lambda it: list(it.entries(EntryFilter(key_prefix="0123abc"))),
            "sqlite_autoindex_entries_1",
        ),
        (lambda it: it.sweep(CREATED_AT, 0.0), "ix_entries_expires_at"),
        (lambda it: it.departed([a_key(0)]), "ix_departed_digest"),
    ],
)
def test_no_query_scans_the_entries(
    database: Database, backend: SqlBackend, call: Callable[[SqlBackend], Any], index: str
) -> None:
    ((_, plan),) = statements_of(database, lambda: call(backend))
    assert any(index in step for step in plan)
    assert not [step for step in plan if step.startswith(("SCAN entries", "SCAN departed"))] or (
        plan == ["SCAN entries USING INDEX ix_entries_used_at"]  # in the listing's order, by pages
    )


@pytest.mark.parametrize(
    "where",
    [
        EntryFilter(namespace="n"),
        EntryFilter(namespace="n", fingerprint=digest("f")),
        EntryFilter(namespace="n", pinned=False),
        EntryFilter(pinned=True),
        EntryFilter(namespace="n", model="m", status=Status.READY),
    ],
)
def test_a_long_listing_is_not_sorted_anew_for_each_page(
    database: Database, backend: SqlBackend, where: EntryFilter
) -> None:
    after = (CREATED_AT, digest("t"))
    read = lambda: database.read(lambda tx: page(tx, where, after, 256))  # noqa: E731
    ((_, plan),) = statements_of(database, read)
    assert plan == ["SEARCH entries USING INDEX ix_entries_used_at ((used_at,digest)<(?,?))"]


def test_totals_read_no_entry(database: Database, backend: SqlBackend) -> None:
    ((statement, _),) = statements_of(database, backend.usage)
    assert "FROM namespace_totals" in statement
    assert "FROM entries" not in statement


@pytest.mark.parametrize(
    ("namespace", "indexes"),
    [
        (None, ["ix_entries_expires_at", "ix_entries_eviction"]),
        ("default", ["ix_entries_namespace_expires_at", "ix_entries_namespace_eviction"]),
    ],
)
def test_eviction_follows_its_indexes(
    database: Database, backend: SqlBackend, namespace: str | None, indexes: list[str]
) -> None:
    """It reads what goes: no scan, no sort."""
    for number in range(20):
        publish(backend, an_entry(number, blob_bytes=10, score=float(number)))
    plans = statements_of(database, lambda: backend.evict(150, CREATED_AT, namespace=namespace))
    steps = [plan for statement, plan in plans if "FROM entries" in statement]
    for (step,), index in zip(steps, indexes, strict=True):
        assert step.startswith(f"SEARCH entries USING INDEX {index} (")
    assert backend.usage().entries == 15


def test_eviction_reads_no_more_than_goes(database: Database, backend: SqlBackend) -> None:
    for number in range(40):
        publish(backend, an_entry(number, blob_bytes=10, score=float(number)))
    limits: list[Any] = []

    @event.listens_for(database._reader, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _ctx: Any, _many: Any) -> None:
        if "ORDER BY entries.status" in statement:
            limits.append(parameters[-2])

    assert backend.evict(350, CREATED_AT).entries == 5
    assert limits == [5]


def damage(database: Database, columns: str) -> None:
    """The work of a bad disk, or of a hand."""
    database.write(lambda tx: tx.exec_driver_sql(f"UPDATE entries SET {columns}"))


DAMAGE = (
    "role = 'x', labels = '['",
    f"labels = '{'[' * 5000}'",
    "n_tokens = 'many'",
    "n_tokens = -1",
    "hits = 9e999",
    "blob = '../x'",
    "blob = x'ff'",
    "blob = CAST(x'ff' AS TEXT)",  # no UTF-8
    "namespace = CAST(x'ff' AS TEXT), role = 'x'",
    "namespace = x'ff', role = 'x'",
)


@pytest.mark.parametrize("columns", DAMAGE)
@pytest.mark.parametrize(
    "remove",
    [
        lambda it: it.evict(0, CREATED_AT).entries == 1,
        lambda it: it.sweep(CREATED_AT + 10, 1e12).expired == 1,
    ],
)
def test_a_damaged_row_goes_like_any_other(
    database: Database, backend: SqlBackend, columns: str, remove: Callable[[SqlBackend], bool]
) -> None:
    publish(backend, an_entry(0, expires_at=CREATED_AT + 5, blob_bytes=7))
    damage(database, columns)
    assert list(backend.entries(EntryFilter())) == []
    assert remove(backend)
    usage = backend.usage()
    assert (usage.entries, usage.blob_bytes) == (0, 0)


@pytest.mark.parametrize("columns", DAMAGE)
def test_a_damaged_row_is_in_nobodys_way(
    database: Database, backend: SqlBackend, columns: str
) -> None:
    """A lookup goes on to the next key, and who makes room finds some beside it."""
    publish(backend, an_entry(0, score=2.0))
    damage(database, columns)
    for number in (1, 2):
        publish(backend, an_entry(number, score=1.0))
    found = backend.longest([a_key(0), a_key(1)], CREATED_AT)
    assert found is not None
    assert found.key == a_key(1)
    assert len(list(backend.entries(EntryFilter()))) == 2
    assert backend.evict(0, CREATED_AT).entries == 3


def test_a_damaged_row_is_deleted_or_replaced_by_its_key(
    database: Database, backend: SqlBackend, tmp_path: Path
) -> None:
    for remove in (lambda it: it.delete(a_key(0), "deleted"), lambda it: publish(it, an_entry(0))):
        backend.evict(0, CREATED_AT)
        publish(backend, an_entry(0))
        damage(database, "role = 'x'")
        assert remove(backend)
    assert [entry.key for entry in backend.entries(EntryFilter())] == [a_key(0)]
    assert backend.usage().entries == len(list(tmp_path.glob("blobs/*/*"))) == 1


def test_empty_namespaces_are_forgotten_by_a_sweep(database: Database, backend: SqlBackend) -> None:
    for number in range(50):
        publish(backend, an_entry(number, blob_bytes=1, namespace=f"tenant {number}"))
    backend.evict(7, CREATED_AT)
    backend.sweep(CREATED_AT, grace_s=1e12)
    rows = database.read(lambda tx: tx.execute(totals.select()).all())
    assert sorted(row.entries for row in rows) == [1] * 7
    assert backend.usage().entries == 7


def test_only_the_newest_removals_are_remembered(
    database: Database, backend: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "DEPARTED_ROWS", 3)
    for number in range(6):
        publish(backend, an_entry(number, blob_bytes=1))
        backend.delete(a_key(number), "deleted")
    keys = [a_key(number) for number in range(6)]
    assert set(backend.departed(keys)) == set(keys[3:])
    assert database.read(lambda tx: len(tx.execute(departed.select()).all())) == 3


def test_a_full_catalog_is_named_and_leaves_no_blob(
    database: Database, backend: SqlBackend, tmp_path: Path
) -> None:
    @event.listens_for(database._reader, "checkout")
    def limit(connection: Any, _entry: Any, _proxy: Any) -> None:
        connection.execute("PRAGMA max_page_count=1")  # SQLite takes the present size instead

    stored = []

    def fill() -> None:
        for number in range(1000):
            entry = an_entry(number, blob_bytes=1, model="m" * 1000)
            publish(backend, entry)
            stored.append(entry.blob)

    with pytest.raises(FullError, match=r"catalog\.sqlite3: no space left"):
        fill()
    assert {path.name for path in tmp_path.glob("blobs/*/*")} == set(stored)
    assert {entry.blob for entry in backend.entries(EntryFilter())} == set(stored)
    assert backend.usage().entries == len(stored)


def test_a_failed_commit_whose_entry_stands_keeps_its_blob(
    database: Database, backend: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection may break after the server committed, before it said so."""
    write = database.write

    def write_and_lose_the_answer(work: Callable[[Any], Any]) -> Any:
        write(work)
        raise UnavailableError("the connection broke")

    entry = an_entry(0)
    monkeypatch.setattr(database, "write", write_and_lose_the_answer)
    with pytest.raises(UnavailableError, match="broke"):
        publish(backend, entry)
    assert backend.longest([entry.key], CREATED_AT) == entry
    assert backend.read(entry) is not None


def test_a_blob_that_cannot_be_unlinked_is_left_to_a_sweep(
    backend: SqlBackend, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    path = tmp_path / "blobs" / entry.blob[:2] / entry.blob
    path.unlink()
    path.mkdir()
    assert backend.delete(entry.key, "deleted")
    assert f"blob {entry.blob} is left to a sweep" in caplog.text
    assert backend.usage().entries == 0
    path.rmdir()
    path.write_bytes(b"x")
    assert backend.sweep(time.time() + 1, grace_s=0).blobs == 1


def test_a_filter_by_text_that_no_catalog_holds_is_refused(backend: SqlBackend) -> None:
    with pytest.raises(InputError, match="model"):
        list(backend.entries(EntryFilter(model="\ud800")))


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Fault.BUSY),
        (sqlite3.SQLITE_FULL, Fault.FULL),
        (sqlite3.SQLITE_IOERR_SHMSIZE, Fault.FULL),
        (sqlite3.SQLITE_IOERR_READ, Fault.OTHER),
        (None, Fault.OTHER),
    ],
)
def test_what_sqlite_means_by_its_codes(code: int | None, fault: Fault) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    if code is not None:
        error.sqlite_errorcode = code
    assert classify(DBAPIError("SELECT 1", None, error)) is fault
