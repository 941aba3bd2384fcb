"""The embedded default: a directory with ``catalog.sqlite3``, files of SQLite, a `LookupFilter` and
a `Reserve` beside it, and ``blobs/``.

Many processes of one host may open it at once; on a network's file system nothing keeps those of
another host out, so it is said in the log. What is created is for its owner alone (0700, 0600).
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path

from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.database import Database
from statestore.backends.sql.filter_file import is_possible
from statestore.backends.sql.lookup_filter import LookupFilter
from statestore.backends.sql.migrate import bring_to_head, require_head
from statestore.backends.sql.mounts import NETWORK, file_system
from statestore.backends.sql.reading import (
    ReadOnlyBackend,
    may_be_written,
    open_for_reading,
)
from statestore.backends.sql.reserve import Reserve
from statestore.backends.sql.sqlite import open_database
from statestore.blobs.filesystem import FilesystemBlobs, storage_error
from statestore.complaints import Complaints
from statestore.errors import FullError, SettingsError

log = logging.getLogger(__name__)
_complaints = Complaints(log)  # a command may open one directory several times

CATALOG = "catalog.sqlite3"
FILTER = "catalog.sqlite3-filter"
RESERVE = "catalog.reserve"
BLOBS = "blobs"


def open_file_backend(path: Path, *, patience_s: float = 10.0) -> SqlBackend:
    """Open the store in the directory `path`, which is created with its parents. One that may not
    be written here is opened for `reading`.

    Args:
        path: the store's directory.
        patience_s: how long a call waits for other processes before it raises `UnavailableError`.

    Raises:
        SettingsError: `path`, or something on the way to it, is not a directory or cannot be one.
        UnavailableError: it cannot be created, read or written, or is no SQLite catalog.
        FullError: no space left.
        SchemaVersionError: a newer release made it.
    """
    root = path.absolute()
    if (kind := file_system(root)) in NETWORK:
        _complaints.add(
            ("network", root),
            "%s is on a network's file system (%s), where SQLite's locks fail: one host alone may "
            "use it; share states by postgresql:// or redis://",
            root,
            kind,
        )
    try:
        writable = may_be_written(root, root / CATALOG)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SettingsError(f"{root} can be no directory: {error.strerror}") from error
        raise storage_error(error, f"looking into {root}") from error
    if not writable:
        return _open_for_reading(root, patience_s)
    reserve = Reserve(root / RESERVE)
    try:
        database = _open_catalog(root, patience_s)
    except FullError:
        if not reserve.give_up():
            raise
        database = _open_catalog(root, patience_s)
    reserve.keep()
    known = LookupFilter(root / FILTER, database) if is_possible() else None
    blobs = FilesystemBlobs(root / BLOBS)
    return SqlBackend(database, blobs, root.as_uri(), lookup_filter=known, reserve=reserve)


def _open_for_reading(root: Path, patience_s: float) -> SqlBackend:
    message = "%s may only be read here: no state is put, and no hit is counted"
    _complaints.add(("reading", root), message, root)
    database = open_for_reading(root / CATALOG, patience_s)
    try:
        require_head(database, "`statestore db upgrade` where it may be written")
    except BaseException:
        database.close()
        raise
    return ReadOnlyBackend(database, FilesystemBlobs(root / BLOBS), root.as_uri())


def require_store(path: Path) -> None:
    """For those who only look: a mistyped path shall not become an empty store.

    Raises:
        SettingsError: there is no store in the directory `path`.
        UnavailableError: it may not be looked into.
    """
    try:
        there = (path / CATALOG).is_file() or (path / BLOBS).is_dir()  # its catalog may be lost
    except OSError as error:
        raise storage_error(error, f"looking into {path}") from error
    if not there:
        raise SettingsError(f"there is no store in {path}: `rwkv-runtime warm` makes one")


def _open_catalog(root: Path, patience_s: float) -> Database:
    _prepare(root)
    database = open_database(root / CATALOG, patience_s)
    try:
        bring_to_head(database)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(root: Path) -> None:
    """Create what is missing, with its modes: SQLite alone would let everybody read the catalog."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / BLOBS).mkdir(mode=0o700, exist_ok=True)
        (root / CATALOG).touch(mode=0o600)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise SettingsError(
                f"{error.filename} is not a directory: a file store needs one"
            ) from error
        raise storage_error(error, f"creating {error.filename or root}") from error
    except ValueError as error:
        raise SettingsError(f"{str(root)!r} can be no directory: {error}") from error
