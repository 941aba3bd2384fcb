"""The catalog's tables: created, recognised, upgraded and refused."""

from __future__ import annotations

import argparse
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event

from statestore import tables
from statestore.backends.sql.file import open_file_backend
from statestore.backends.sql.migrate import migrations_dir
from statestore.backends.sql.revisions import of_file
from statestore.entry import Change, Status
from statestore.errors import SchemaVersionError, SettingsError, UnavailableError
from tests.checkout import GOLDEN, ROOT
from tests.golden.make_golden_catalog import use_golden
from tests.places.backend_places import FilePlace, a_key, an_entry, publish
from tests.statestore.workers.backend_worker import KEYS, run_worker


def query(root: Path, statement: str) -> list[Any]:
    with closing(sqlite3.connect(root / "catalog.sqlite3")) as connection, connection:
        return connection.execute(statement).fetchall()


def test_the_constants_are_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()))
    script = ScriptDirectory.from_config(config)
    assert script.get_heads() == [tables.HEAD]
    walked = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(walked)) == tables.REVISIONS


def on_sqlite(item: Any, *_: Any) -> bool:
    return item.info.get(tables.ONLY_ON, "sqlite") == "sqlite"


def test_the_migrated_tables_are_those_of_the_metadata(tmp_path: Path) -> None:
    open_file_backend(tmp_path).close()
    engine = create_engine(f"sqlite:///{tmp_path}/catalog.sqlite3")
    with engine.connect() as connection:
        options = {"compare_type": True, "include_object": on_sqlite}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()
    assert query(tmp_path, "SELECT id, age FROM ageing") == [(0, 0.0)]


def test_a_revision_imports_no_application_code() -> None:
    revisions = sorted(migrations_dir().glob("versions/*.py"))
    assert len(revisions) == len(tables.REVISIONS)
    for path in revisions:
        assert not re.search(
            r"^\s*(from|import)\s+(statestore|rwkv_runtime)", path.read_text(), re.MULTILINE
        )


def test_down_and_up_again_from_a_shell(tmp_path: Path) -> None:
    open_file_backend(tmp_path).close()
    url = f"url=sqlite:///{tmp_path}/catalog.sqlite3"
    config = Config(cmd_opts=argparse.Namespace(x=[url]))
    config.set_main_option("script_location", str(migrations_dir()))
    command.downgrade(config, "base")
    assert query(tmp_path, "SELECT name FROM sqlite_master WHERE type = 'table'") == [
        ("alembic_version",)
    ]
    command.upgrade(config, "head")
    backend = open_file_backend(tmp_path)
    assert publish(backend, an_entry(0))
    backend.close()


def test_a_catalog_without_tables_is_brought_to_head_on_open(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite3").touch()
    open_file_backend(tmp_path).close()
    assert query(tmp_path, "SELECT version_num FROM alembic_version") == [(tables.HEAD,)]


def test_at_head_alembic_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from statestore.backends.sql.file import *;"
        "open_file_backend(Path(sys.argv[1])).close(); print('alembic' in sys.modules)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert outputs == ["True\n", "False\n"]


def test_a_newer_catalog_is_refused_by_name(tmp_path: Path) -> None:
    open_file_backend(tmp_path).close()
    query(tmp_path, "UPDATE alembic_version SET version_num = '9042'")
    with pytest.raises(SchemaVersionError) as caught:
        open_file_backend(tmp_path)
    for part in (str(tmp_path), "'9042'", repr(tables.HEAD), "pip install -U rwkv-statestore"):
        assert part in str(caught.value)


def test_an_upgrade_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(
        _connection: Any, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: Any
    ) -> None:
        if "CREATE TABLE leases" in statement:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_file_backend(tmp_path)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    assert query(tmp_path, "SELECT name FROM sqlite_master") == []
    backend = open_file_backend(tmp_path)
    assert publish(backend, an_entry(0))
    backend.close()


@pytest.mark.parametrize("attempt", range(2))
def test_sixteen_processes_open_a_new_store_at_once(tmp_path: Path, attempt: int) -> None:
    root = tmp_path / "not" / "yet" / "there"
    done = run_worker("race", root, attempt, 16)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {row["digest"] for row in FilePlace(root).rows()} == {
        a_key(KEYS + number).digest for number in range(16)
    }
    assert query(root, "SELECT sum(entries) FROM namespace_totals") == [(16,)]
    assert query(root, "PRAGMA journal_mode") == [("wal",)]


@pytest.mark.parametrize("revision", tables.REVISIONS)
def test_a_golden_catalog_is_opened_and_used(tmp_path: Path, revision: str) -> None:
    shutil.copy(GOLDEN / f"catalog-{revision}.sqlite3", tmp_path / "catalog.sqlite3")
    backend = open_file_backend(tmp_path)
    use_golden(backend, revision)
    backend.close()


def test_totals_survive_the_way_down_and_up(tmp_path: Path) -> None:
    backend = open_file_backend(tmp_path)
    for number in range(300):
        name = f"tenant {number % 3}"
        publish(backend, an_entry(number, blob_bytes=number, namespace=name, pinned=number < 9))
    backend.update(a_key(299), Change(status=Status.QUARANTINED))
    names = (None, "tenant 0", "tenant 1", "tenant 2")
    before = [backend.usage(name) for name in names]
    backend.close()
    with of_file(tmp_path) as revisions:
        revisions.downgrade("0001")
    sums = ("entries", "blob_bytes", "state_bytes", "quarantined", "pinned")
    assert query(tmp_path, f"SELECT {', '.join(f'sum({name})' for name in sums)} FROM totals") == [
        tuple(getattr(before[0], name) for name in sums)
    ]
    shards = "SELECT shard, entries FROM totals ORDER BY shard"
    digests = [bytes(row["digest"]) for row in FilePlace(tmp_path).rows()]
    counted = Counter(digest[0] % tables.SHARDS for digest in digests)
    assert query(tmp_path, shards) == [(shard, counted[shard]) for shard in range(tables.SHARDS)]
    backend = open_file_backend(tmp_path)
    assert [backend.usage(name) for name in names] == before
    assert query(
        tmp_path, "SELECT shard, sum(entries) FROM namespace_totals GROUP BY shard"
    ) == sorted(counted.items())
    backend.close()


def test_something_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite3").write_bytes(b"not a database at all, " * 100)
    with pytest.raises(UnavailableError, match=r"catalog .*catalog\.sqlite3: file is not a datab"):
        open_file_backend(tmp_path)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingsError, match="is not a directory"):
            open_file_backend(path)


def test_a_place_where_nothing_can_be_made_is_named() -> None:
    with pytest.raises(UnavailableError, match="/proc/states"):
        open_file_backend(Path("/proc/states"))
