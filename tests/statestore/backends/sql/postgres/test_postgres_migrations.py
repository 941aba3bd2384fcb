"""A fleet's catalog: upgraded by an operator and by nobody else, safely, and recognised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event, make_url

from statestore import open_store, tables
from statestore.backends.sql import migrate
from statestore.backends.sql.fleet import FleetPlace, open_revisions
from statestore.errors import InputError, SchemaVersionError
from tests.checkout import GOLDEN
from tests.golden.make_golden_catalog import use_golden
from tests.places.backend_places import a_key, an_entry, publish
from tests.places.postgres_servers import SECRET, PostgresPlace
from tests.statestore.workers.backend_worker import KEYS
from tests.statestore.workers.commanded import run
from tests.statestore.workers.postgres_worker import run_worker


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[PostgresPlace]:
    """A database without tables."""
    place = PostgresPlace(tmp_path, template="template1")
    yield place
    place.drop()


def upgrade(place: PostgresPlace) -> None:
    with open_revisions(FleetPlace.parse(place.url)) as revisions:
        revisions.upgrade()


def tables_of(place: PostgresPlace) -> set[str]:
    rows = place.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


def on_postgresql(item: Any, *_: Any) -> bool:
    return item.info.get(tables.ONLY_ON, "postgresql") == "postgresql"


def test_the_migrated_tables_are_those_of_the_metadata(place: PostgresPlace) -> None:
    engine = create_engine(make_url(place.url).set(query={}))
    with engine.connect() as connection:
        options = {"compare_type": True, "include_object": on_postgresql}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()
    assert place.query("SELECT id, age FROM ageing") == [{"id": 0, "age": 0.0}]


def test_opening_changes_nothing_and_names_the_command(empty: PostgresPlace) -> None:
    with pytest.raises(SchemaVersionError) as caught:
        empty.open()
    safe = FleetPlace.parse(f"{empty.url}&timeout_s=30").url  # a test's place is patient
    for part in ("has no tables yet", repr(tables.HEAD), f"statestore --store '{safe}' db upgrade"):
        assert part in str(caught.value)
    assert SECRET not in str(caught.value)
    assert tables_of(empty) == set()
    assert not (empty.root / "blobs").exists()


def test_an_older_catalog_is_refused(place: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "REVISIONS", (*tables.REVISIONS, "9041"))
    monkeypatch.setattr(migrate, "HEAD", "9041")
    with pytest.raises(SchemaVersionError, match=f"at revision '{tables.HEAD}'.* db upgrade"):
        place.open()


def test_a_newer_catalog_is_refused(place: PostgresPlace) -> None:
    with place.server.connect(place.database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9042'")
    for refused in (place.open, lambda: upgrade(place)):
        with pytest.raises(SchemaVersionError, match=r"'9042'.*pip install -U rwkv-statestore"):
            refused()


@pytest.mark.parametrize("attempt", range(2))
def test_many_processes_upgrade_at_once(empty: PostgresPlace, attempt: int) -> None:
    run_worker("race", empty.url, attempt, 8)
    assert {bytes(row["digest"]) for row in empty.rows()} == {
        a_key(KEYS + number).digest for number in range(8)
    }
    assert empty.query("SELECT sum(entries) AS entries FROM namespace_totals") == [{"entries": 8}]


def test_an_upgrade_that_fails_leaves_nothing_behind(empty: PostgresPlace) -> None:
    def fail(
        _connection: Any, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: Any
    ) -> None:
        if "CREATE TABLE leases" in statement:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            upgrade(empty)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    assert tables_of(empty) == set()
    upgrade(empty)
    backend = empty.open()
    assert publish(backend, an_entry(0))
    backend.close()


@pytest.mark.parametrize("revision", tables.REVISIONS)
def test_a_golden_catalog_is_upgraded_and_used(empty: PostgresPlace, revision: str) -> None:
    dump = (GOLDEN / f"catalog-{revision}.sql").read_text(encoding="utf-8")
    with empty.server.connect(empty.database) as connection:
        connection.execute(dump.encode())
    upgrade(empty)
    anchors = {row["role"]: row["anchor"] for row in empty.rows()}
    assert anchors.pop("named") == 0
    assert set(anchors.values()) == {None}
    (empty.root / "blobs").mkdir()
    backend = empty.open()
    use_golden(backend, revision)
    backend.close()


def test_totals_survive_the_way_down_and_up(place: PostgresPlace) -> None:
    backend = place.open()
    for number in range(60):
        name = f"tenant {number % 3}"
        publish(backend, an_entry(number, blob_bytes=number, namespace=name, pinned=number < 9))
    names = (None, "tenant 0", "tenant 1", "tenant 2")
    before = [backend.usage(name) for name in names]
    sums = (
        "SELECT namespace, shard, entries, blob_bytes, pinned FROM namespace_totals ORDER BY 1, 2"
    )
    rows = place.query(sums)
    backend.close()
    with open_revisions(FleetPlace.parse(place.url)) as revisions:
        revisions.downgrade("0001")
        (old,) = place.query("SELECT sum(entries) AS n, sum(blob_bytes) AS size FROM totals")
        assert old == {"n": 60, "size": before[0].blob_bytes}
        revisions.upgrade()
    assert place.query(sums) == rows
    backend = place.open()
    assert [backend.usage(name) for name in names] == before
    backend.close()


def test_down_to_nothing_and_up_again(place: PostgresPlace) -> None:
    with open_revisions(FleetPlace.parse(place.url)) as revisions:
        for target in ("9042", tables.HEAD, "", "head", "-1"):
            with pytest.raises(InputError, match="known below it: base, 0001"):
                revisions.downgrade(target)
        revisions.downgrade("base")
        assert revisions.status().found is None
        with pytest.raises(InputError, match=r"at revision 'base'.*below it: none"):
            revisions.downgrade("base")
    assert tables_of(place) == {"alembic_version"}
    upgrade(place)
    place.open().close()


def test_the_commands(empty: PostgresPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_STATESTORE_URL", empty.url)

    def standing() -> tuple[str | None, str]:
        done = run("db", "current", "--json")
        fields = json.loads(done.stdout)
        assert fields["head"] == tables.HEAD
        return fields["revision"], fields["standing"]

    refused = run("ls")
    assert refused.returncode == 4
    assert "db upgrade" in refused.stderr
    assert standing() == (None, "empty")
    assert run("db", "upgrade").stdout == f"upgraded from nothing to {tables.HEAD}\n"
    assert standing() == (tables.HEAD, "current")
    assert run("db", "upgrade").stdout == f"at {tables.HEAD} already\n"
    assert "nothing is stored here yet" in run("ls").stdout
    assert tables.HEAD in run("db", "current").stdout
    assert run("db", "downgrade", "base").returncode == 2  # not confirmed
    assert standing() == (tables.HEAD, "current")
    done = run("db", "downgrade", "base", "--yes")
    assert done.stdout == f"downgraded from {tables.HEAD} to base\n"
    assert standing() == (None, "empty")
    assert run("db", "downgrade", "base", "--yes").returncode == 2
    assert "s3cret" not in refused.stderr


def test_the_commands_know_file_stores_too(tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store"))
    other = run(*store, "--store", "redis://u:s3cret@127.0.0.1:1/0", "db", "current")
    assert other.returncode == 2
    assert "redis://u:***@127.0.0.1:1/0': it has no SQL catalog" in other.stderr
    missing = run(*store, "db", "current")
    assert missing.returncode == 2
    assert f"there is no store in {tmp_path / 'store'}" in missing.stderr
    open_store(str(tmp_path / "store")).close()
    assert run(*store, "db", "upgrade").stdout == f"at {tables.HEAD} already\n"
    assert run(*store, "db", "downgrade", "base", "--yes").returncode == 0
    assert json.loads(run(*store, "db", "current", "--json").stdout)["standing"] == "empty"
    assert run(*store, "db", "upgrade").stdout == f"upgraded from nothing to {tables.HEAD}\n"
    assert "Usage: statestore db" in run(*store, "db", "--help").stdout
