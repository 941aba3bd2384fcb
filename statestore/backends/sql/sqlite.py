"""What is special about SQLite, in one place.

* **WAL**: readers never wait for a writer, nor a writer for readers. Turning it on needs the
  database alone and does not honour the busy timeout: it fails as busy, and `Database` tries again.
* **BEGIN IMMEDIATE** for transactions that write: a transaction that read first and then wants to
  write cannot wait for another writer, it can only fail.
* **synchronous=NORMAL**: a commit does not wait for the disk. A power cut may undo the newest
  commits and never damages the catalog. An entry undone so is a miss and its blob an orphan; a
  removal undone so leaves an entry without a blob, which is a miss too. No answer is ever wrong
  by it.

A catalog whose directory was removed and made anew, or put back from a copy, is another file: who
still has the old one open would write where nobody looks. So each transaction looks at which file
is in place.

The catalog lies on a local disk: WAL shares memory between processes of one host only.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from statestore.backends.base import NotAtHandError
from statestore.backends.sql.database import PATIENCE, WRITES, Database, Dialect, Fault, Row
from statestore.errors import UnavailableError

#: Device and inode; ``None``: no file.
_File: TypeAlias = tuple[int, int] | None

_IDLE_CONNECTIONS: Final = (
    8  # kept open between transactions; more are opened when threads want them
)
# At most, of each connection: the index of a million digests. With 8 MiB a lookup of a million
# tokens took a third longer.
_CACHE_KIB: Final = 64 << 10
_NO_ROOM: Final = frozenset({sqlite3.SQLITE_IOERR_SHMSIZE})  # the WAL's index could not grow
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_MAKE_ANEW: Final = (
    "stop who uses it, move its files away (catalog.sqlite3*), and `statestore verify --fix "
    "--grace 0` makes it anew from the blobs"
)
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})


def open_database(path: Path, patience_s: float) -> Database:
    """The SQLite database at `path`, in WAL mode; `patience_s` bounds every wait for a lock."""
    place, name = f"catalog {path}", str(path)
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=_IDLE_CONNECTIONS,
        max_overflow=-1,
        connect_args={"timeout": patience_s},
    )

    @event.listens_for(engine, "do_connect")
    def look(_dialect: object, entry: ConnectionPoolEntry, _given: object, _named: object) -> None:
        entry.info["file"] = _file(name)

    @event.listens_for(engine, "connect")
    def prepare(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        assert isinstance(connection, sqlite3.Connection)
        _prepare(connection, place)

    @event.listens_for(engine, "checkout")
    def check(_connection: object, entry: ConnectionPoolEntry, _proxy: object) -> None:
        if _replaced(name, entry.info["file"]):
            raise DisconnectionError  # the pool connects anew

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        writes = options.get(WRITES, False)
        waits_s = options.get(PATIENCE, patience_s)
        connection.exec_driver_sql(f"PRAGMA busy_timeout={round(1000 * waits_s)}").close()
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    remedy = "is it a SQLite database, on a local disk that this user may write?"
    shortcut = SqliteShortcut(path, place, patience_s)
    spelling = SQLiteDialect(paramstyle="named")
    dialect = Dialect(classify, remedy, spelling, {Fault.DAMAGED: _MAKE_ANEW})
    return Database(engine, place, dialect, patience_s, shortcut)


def classify(error: DBAPIError) -> Fault:
    """What a SQLite exception means."""
    code = int(getattr(error.orig, "sqlite_errorcode", 0))  # 0: the driver itself complained
    primary = code & 0xFF
    if primary in _BUSY:
        return Fault.BUSY
    if primary in _DAMAGED:
        return Fault.DAMAGED
    if primary == sqlite3.SQLITE_READONLY:
        return Fault.READS_ONLY
    return Fault.FULL if primary == sqlite3.SQLITE_FULL or code in _NO_ROOM else Fault.OTHER


class SqliteShortcut:
    """Connections that only read, one statement at a time, each its own transaction."""

    def __init__(self, path: Path, place: str, patience_s: float) -> None:
        self._path = str(path)
        self._place = place
        self._patience_s = patience_s
        self._idle: list[tuple[sqlite3.Connection, _File]] = []

    def rows(
        self, text: str, parameters: Mapping[str, Any], until: float | None = None
    ) -> list[Row]:
        """The rows of one SELECT. A disk keeps no deadline: with `until` it is never at hand."""
        if until is not None:
            raise NotAtHandError
        connection, file = self._connection()
        try:
            rows = _fetched(connection, text, parameters)
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise DBAPIError(text, None, error) from error
            raise
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append((connection, file))
        else:
            connection.close()
        return rows

    def clear(self) -> None:
        """Close every connection; nobody is in `rows`."""
        while self._idle:
            self._idle.pop()[0].close()

    def _connection(self) -> tuple[sqlite3.Connection, _File]:
        """One that is idle, or a new one; of the file that is in place now."""
        while True:
            file = _file(self._path)
            try:
                connection, opened = self._idle.pop()
            except IndexError:
                return self._connect(), file
            if file == opened or file is None:
                return connection, opened
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self._path,
                timeout=self._patience_s,
                isolation_level=None,
                check_same_thread=False,
            )
            _prepare(connection, self._place)
        except sqlite3.Error as error:
            raise DBAPIError(None, None, error) from error
        connection.text_factory = str
        return connection


def _fetched(connection: sqlite3.Connection, text: str, parameters: Mapping[str, Any]) -> list[Row]:
    """The rows of a statement. Texts are decoded by the driver, and once more where it cannot:
    `as_text` costs a call for each column.
    """
    try:
        return connection.execute(text, parameters).fetchall()
    except sqlite3.OperationalError as error:
        if hasattr(error, "sqlite_errorcode"):  # SQLite's own, not the driver's about a text
            raise
        connection.text_factory = as_text
        rows = connection.execute(text, parameters).fetchall()
        connection.text_factory = str
        return rows


def _file(path: str) -> _File:
    """Which file is in place; ``None``: there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - half of what it takes otherwise, at each transaction
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _replaced(path: str, file: _File) -> bool:
    """Whether another file is in the place of `file`. One that is merely gone is used to its end:
    to connect anew would make an empty one.
    """
    return _file(path) not in (file, None)


def _prepare(connection: sqlite3.Connection, place: str) -> None:
    connection.isolation_level = None  # transactions are begun by `begin`, not by the driver
    connection.text_factory = as_text
    _enter_wal(connection, place)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")


def as_text(stored: bytes) -> str:
    """Text as far as it is some: the driver would refuse every row beside a damaged one."""
    return stored.decode(errors="replace")


def _enter_wal(connection: sqlite3.Connection, place: str) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
    if mode != "wal":
        raise UnavailableError(f"{place}: its file system cannot do WAL; use a local disk")
