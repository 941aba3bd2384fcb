"""The store of a fleet: a catalog on a PostgreSQL server, blobs in a directory that all share, or
in an object store (`statestore.blobs.s3` has the options).

    postgresql+psycopg://user:secret@host:5432/database?blobs=file:///shared/states
    postgresql+psycopg://user:secret@host:5432/database?blobs=s3://bucket/prefix&region=eu-central-1

An open store never changes its catalog's tables: a fleet's hosts are upgraded one by one, and
`statestore db upgrade` says when. What `OPTIONS` lists beside ``blobs`` and ``timeout_s`` goes to
libpq as it is. Without a password in the URL, libpq looks into PGPASSWORD and ~/.pgpass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlencode

from sqlalchemy import URL, Connection, make_url, select
from sqlalchemy.exc import ArgumentError

from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.cached import CachedBlobs
from statestore.backends.sql.database import Database
from statestore.backends.sql.line import PostgresLine
from statestore.backends.sql.migrate import refuse_other, require_head
from statestore.backends.sql.postgres import open_database, open_for_migration, without_secret
from statestore.backends.sql.revisions import Revisions
from statestore.blobs import s3
from statestore.blobs.base import BlobStore
from statestore.blobs.filesystem import FilesystemBlobs, storage_error
from statestore.errors import SchemaVersionError, SettingsError, UnavailableError
from statestore.tables import entries

_DRIVER: Final = "postgresql+psycopg"
_LIBPQ_OPTIONS: Final[tuple[str, ...]] = (
    "application_name",
    "channel_binding",
    "host",  # the directory of a Unix socket
    "passfile",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
)
OPTIONS: Final = ("blobs", "timeout_s", *s3.OPTIONS, *_LIBPQ_OPTIONS)

_MALFORMED: Final = (
    "malformed store URL; write postgresql+psycopg://user:secret@host/database"
    "?blobs=file:///shared/states, with %-escapes for signs like @ and / in the secret"
)
_TIMEOUT_S: Final = 2.0
_MAX_TIMEOUT_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class FleetPlace:
    """Where a fleet's catalog and blobs are."""

    catalog: URL  # its repr hides the password
    blobs: Path | s3.S3Place
    timeout_s: float = _TIMEOUT_S

    @classmethod
    def parse(cls, text: str) -> FleetPlace:
        """The place that a store's URL names.

        Raises:
            SettingsError: a part of the URL is missing or malformed.
        """
        try:
            url = make_url(text)
        except (ArgumentError, ValueError):
            raise SettingsError(_MALFORMED) from None
        if "@" in (url.host or ""):  # the end of a password
            raise SettingsError(_MALFORMED)
        shown = without_secret(url.set(query={}))
        options: dict[str, str] = {}
        for name, value in url.query.items():
            if not isinstance(value, str):
                raise SettingsError(f"store URL {shown!r}: {name} is given twice")
            options[name] = value
        libpq: dict[str, str] = {name: options[name] for name in _LIBPQ_OPTIONS if name in options}
        catalog = url.set(drivername=_DRIVER, query=libpq)  # plain postgresql:// means it, too
        if not catalog.database:
            raise SettingsError(f"store URL {shown!r}: it names no database")
        return cls(
            catalog,
            _blobs(options, shown),
            _seconds(options.get("timeout_s", str(_TIMEOUT_S)), shown),
        )

    @property
    def url(self) -> str:
        """The URL that opens this place again, without its password."""
        blobs = self.blobs
        where = {"blobs": f"file://{blobs}"} if isinstance(blobs, Path) else blobs.options
        options = {**where, **dict(self.catalog.query)}
        if self.timeout_s != _TIMEOUT_S:
            options["timeout_s"] = f"{self.timeout_s:g}"
        query = urlencode(options, safe=":/", quote_via=quote)
        return f"{without_secret(self.catalog.set(query={}))}?{query}"


def open_fleet_backend(place: FleetPlace, *, absent_ok: bool = False) -> SqlBackend:
    """Open the store at `place`, whose catalog is at this release's tables.

    With `absent_ok` the server may be down: what would be refused here is refused, as unavailable,
    by each call until the server is there and all is as it should be.

    Raises:
        SchemaVersionError: the catalog is empty, older or newer; it names the command that helps.
        UnavailableError: the server or the blobs' place cannot be used.
        SettingsError: the object store's driver is missing, or refuses an option.
    """
    database = open_database(place.catalog, place.timeout_s)
    try:
        there = _is_there(database, place, absent_ok=absent_ok)
        blobs: BlobStore
        cached = None
        if isinstance(place.blobs, Path):
            blobs = FilesystemBlobs(place.blobs)
            cached = CachedBlobs(blobs, place.blobs)
        else:
            blobs = place.blobs.open()
        listen = partial(PostgresLine, place.catalog)
        backend = SqlBackend(database, blobs, place.url, listen=listen, cached=cached)
        if there and isinstance(place.blobs, Path) and not place.blobs.is_dir():
            _create(place.blobs, empty=backend.usage().entries == 0)
    except BaseException:
        database.close()
        raise
    return backend


def _is_there(database: Database, place: FleetPlace, *, absent_ok: bool) -> bool:
    """Whether the server is; one that is not has its tables looked at when it comes."""
    command = f"statestore --store '{place.url}' db upgrade"
    try:
        require_head(database, command)
    except UnavailableError:
        if not absent_ok:
            raise
        database.require(partial(_look_first, place, database.place, command))
        return False
    return True


def _look_first(place: FleetPlace, name: str, command: str, connection: Connection) -> None:
    try:
        refuse_other(connection, name, command)
    except SchemaVersionError as error:  # may yet be upgraded
        raise UnavailableError(str(error)) from None
    if isinstance(place.blobs, Path) and not place.blobs.is_dir():
        stored = connection.execute(select(entries.c.digest).limit(1)).first()
        _create(place.blobs, empty=stored is None)


def open_revisions(place: FleetPlace) -> Revisions:
    """The revision of the catalog at `place`, to look at or to change."""
    return Revisions(open_for_migration(place.catalog))


def _blobs(options: Mapping[str, str], shown: str) -> Path | s3.S3Place:
    """The directory of ``file:///path``, whose escapes were taken out with the option's, or the
    place of ``s3://bucket/prefix`` and the options that belong to it.
    """
    text = options.get("blobs", "")
    if text.startswith(s3.SCHEME):
        try:
            return s3.S3Place.parse(text, options)
        except SettingsError as error:
            raise SettingsError(f"store URL {shown!r}: {error}") from None
    if idle := sorted(options.keys() & set(s3.OPTIONS)):
        raise SettingsError(f"store URL {shown!r}: {idle[0]} is for blobs={s3.SCHEME}... only")
    path = text.removeprefix("file://")
    if path == text or not path.startswith("/"):
        raise SettingsError(
            f"store URL {shown!r}: blobs={text!r} names no directory; "
            "write for example blobs=file:///shared/states"
        )
    return Path(path)


def _seconds(text: str, shown: str) -> float:
    seconds = math.nan
    with suppress(ValueError):
        seconds = float(text)
    if not 0.01 <= seconds <= _MAX_TIMEOUT_S:
        raise SettingsError(
            f"store URL {shown!r}: timeout_s={text!r} is to be seconds, "
            f"from 0.01 to {_MAX_TIMEOUT_S:g}"
        )
    return seconds


def _create(blobs: Path, *, empty: bool) -> None:
    """Make the directory of a store that is `empty`; another one's is not mounted."""
    if not empty:
        raise UnavailableError(f"{blobs} is not there, but the catalog has entries: is it mounted?")
    try:
        blobs.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise storage_error(error, f"creating {blobs}") from error
