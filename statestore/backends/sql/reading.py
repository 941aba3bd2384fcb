"""A file store that may only be read here: a file system mounted so, or another user's directory.

SQLite reads such a catalog in one of two ways, chosen anew for each transaction:

* **Others have it open**, or died: its ``-wal`` and ``-shm`` are there, and reading goes through
  them as ever. It sees what is committed, and locks as all others do. Without the second file
  SQLite refuses: what lies in the first one only a writer brings in.
* **Nobody has it open**: there is no log, so the catalog itself is all there is, and SQLite is told
  that nobody changes it. Who opens it for writing meanwhile, through another mount or as another
  user, makes a log before anything changes: what was read is thrown away then, and read again.

There are no leases, sightings and tallies, which would be written; hits are not counted. A put is
refused, which the store above drops and counts, and so is all that removes or changes something.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from sqlalchemy import Connection, NullPool, create_engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.exc import DBAPIError

from statestore.backends.base import Blob
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups
from statestore.backends.sightings import Sightings
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.database import Database, Dialect, Fault
from statestore.backends.sql.sqlite import as_text, classify
from statestore.entry import Entry
from statestore.errors import UnavailableError

_LOG: Final = "-wal"
_INDEX: Final = "-shm"
_CLOSING_S: Final = 0.25  # between the removals of the two, at most


def may_be_written(root: Path, catalog: Path) -> bool:
    """Whether this process may write the store in `root`; one that is still to be made, it may."""
    return not catalog.is_file() or (os.access(root, os.W_OK) and os.access(catalog, os.W_OK))


def open_for_reading(path: Path, patience_s: float) -> Database:
    """The SQLite database at `path`, which this process may not write."""
    place = f"catalog {path}"
    snapshot = _Snapshot(path, patience_s)
    engine = create_engine("sqlite://", creator=snapshot.connect, poolclass=NullPool)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    @event.listens_for(engine, "commit")
    def commit(_connection: Connection) -> None:
        if snapshot.is_stale():
            raise DBAPIError("COMMIT", None, sqlite3.OperationalError("it was changed meanwhile"))

    def classified(error: DBAPIError) -> Fault:
        changed = snapshot.is_stale() or snapshot.has_gone()
        return Fault.BUSY if changed else classify(error)

    who = f"user id {os.geteuid()}"
    remedies = {
        Fault.READS_ONLY: f"mount it for writing, or give {who} the right to write there",
        Fault.DAMAGED: "whoever may write there makes it anew: `statestore verify --fix`",
    }
    remedy = (
        f"may {who} read it and what SQLite keeps beside it? If a writer died, only a writer "
        "brings in what it left: run `statestore stats` where the store may be written"
    )
    dialect = Dialect(classified, remedy, SQLiteDialect(paramstyle="named"), remedies)
    return Database(engine, place, dialect, patience_s)


class ReadOnlyBackend(SqlBackend):
    """A `SqlBackend` whose catalog and blobs are only read."""

    @property
    def leases(self) -> Leases | None:
        """None: a lease is written down."""
        return None

    @property
    def sightings(self) -> Sightings | None:
        """None, as leases."""
        return None

    @property
    def lookups(self) -> Lookups | None:
        """None, as leases."""
        return None

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:  # noqa: ARG002
        """Raises `UnavailableError`, unless a usable entry is there already."""
        if self._stored(entry):
            return False
        raise UnavailableError(
            f"{self.url} may only be read here: mount it for writing, or give user id "
            f"{os.geteuid()} the right to write there"
        )

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,
        *,
        memo: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Nothing: who may not write counts no hits."""


class _Look(NamedTuple):
    """What there was to see of the catalog."""

    log: bool
    file: tuple[int, ...] = ()  # without a log: inode, size, time of change


class _Snapshot:
    """Connections to the catalog as it is, and whether it still is what a thread has connected to.

    One connection a transaction: that costs a fraction of a millisecond, and none outlives what it
    was told of the file.
    """

    def __init__(self, path: Path, patience_s: float) -> None:
        self._path = path
        self._patience_s = patience_s
        self._mine = threading.local()

    def connect(self) -> sqlite3.Connection:
        """Of this thread, for one transaction."""
        self._let_go()
        self._mine.seen = seen = self._look()
        how = "mode=ro" if seen.log else "mode=ro&immutable=1"
        connection = sqlite3.connect(
            f"file:{quote(os.fspath(self._path))}?{how}",
            uri=True,
            timeout=self._patience_s,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.text_factory = as_text
        return connection

    def is_stale(self) -> bool:
        """Whether this thread was told that nobody changes the file, and somebody may have."""
        seen: _Look | None = getattr(self._mine, "seen", None)
        return seen is not None and not seen.log and self._look() != seen

    def has_gone(self) -> bool:
        """Whether the log that this thread wanted to read through is no longer there."""
        seen: _Look | None = getattr(self._mine, "seen", None)
        return seen is not None and seen.log and not self._look().log

    def _let_go(self) -> None:
        """Who closes the catalog removes the log's index first, then the log."""
        until = time.monotonic() + _CLOSING_S
        while self._look().log and not _size(f"{self._path}{_INDEX}"):
            if time.monotonic() > until:
                return
            time.sleep(_CLOSING_S / 50)

    def _look(self) -> _Look:
        if _size(f"{self._path}{_LOG}"):
            return _Look(log=True)
        try:
            found = self._path.stat()
        except OSError:
            return _Look(log=False)
        return _Look(log=False, file=(found.st_ino, found.st_size, found.st_mtime_ns))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a string is at hand
    except OSError:
        return 0
