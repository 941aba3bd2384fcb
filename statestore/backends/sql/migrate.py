"""Brings a catalog to the tables of this release: when it is opened, or when an operator says so.

A catalog at head costs one SELECT and does not load Alembic. An empty or an older one is upgraded
inside one transaction that holds the write lock: of many processes that open it at once one
upgrades, and the others, let in one after the other, find it done. A newer one is refused by
name. A fleet's catalog is not upgraded by opening it: `require_head` refuses an older one too.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, column, inspect, select, table

from statestore.backends.sql.database import Database
from statestore.errors import InputError, SchemaVersionError
from statestore.tables import HEAD, REVISIONS

_VERSION: Final = table("alembic_version", column("version_num"))

# Alembic's `context` and `op` are globals of the process.
_alembic = threading.Lock()


def bring_to_head(database: Database) -> None:
    """Create or upgrade the tables of `database`, unless they are those of this release.

    Raises:
        SchemaVersionError: they are of a newer release, or this installation lacks its migrations.
        UnavailableError: the database failed.
    """
    if _needs_upgrade(database.read(revision), database.place):
        _upgrade(database)


def require_head(database: Database, command: str) -> None:
    """Refuse tables that are not of this release; nothing is changed.

    Args:
        database: the catalog.
        command: what an operator types to upgrade it; the error names it.

    Raises:
        SchemaVersionError: the catalog is empty, or its tables are older or newer.
        UnavailableError: the database failed.
    """
    database.read(lambda connection: refuse_other(connection, database.place, command))


def refuse_other(connection: Connection, place: str, command: str) -> None:
    """As `require_head`, within somebody's transaction."""
    found = revision(connection)
    if _needs_upgrade(found, place):
        state = "has no tables yet" if found is None else f"is at revision {found!r}"
        raise SchemaVersionError(f"{place} {state}, this release needs {HEAD!r}: run {command}")


def downgrade(database: Database, target: str) -> None:
    """Take the tables of `database` back to the revision `target`; ``"base"`` is none.

    Raises:
        InputError: `target` is not below the catalog's revision.
        SchemaVersionError: a newer release made the tables.
        UnavailableError: the database failed.
    """

    def work(connection: Connection) -> None:
        with _alembic:
            found = revision(connection)
            _needs_upgrade(found, database.place)
            _require_below(found, target, database.place)
            _run("downgrade", connection, target)

    database.write(work)


def revision(connection: Connection) -> str | None:
    """The catalog's revision; ``None`` before the first."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    return connection.scalar(select(_VERSION.c.version_num))


def migrations_dir() -> Path:
    """Where the revisions lie: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[2]
    candidates = (package / "_migrations", package.parent / "migrations")
    for candidate in candidates:
        if (candidate / "env.py").is_file():
            return candidate
    raise SchemaVersionError(f"no migrations at {candidates[0]}: install rwkv-statestore again")


def _needs_upgrade(found: str | None, place: str) -> bool:
    """Whether `found` is older than head. Raises `SchemaVersionError` if it is newer."""
    if found is not None and found not in REVISIONS:
        raise SchemaVersionError(
            f"{place} is at revision {found!r}, this release knows up to {HEAD!r}: "
            "a newer release made it; upgrade here (pip install -U rwkv-statestore)"
        )
    return found != HEAD


def _upgrade(database: Database) -> None:
    def work(connection: Connection) -> None:
        with _alembic:
            if _needs_upgrade(revision(connection), database.place):
                _run("upgrade", connection, "head")

    database.write(work)


def _run(direction: str, connection: Connection, target: str) -> None:
    """Alembic's command `direction`, over `connection`."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    getattr(command, direction)(config, target)


def _require_below(found: str | None, target: str, place: str) -> None:
    lower = ("base", *REVISIONS[: REVISIONS.index(found)]) if found in REVISIONS else ()
    if target not in lower:
        raise InputError(
            f"{place} is at revision {found or 'base'!r}: it cannot go down to {target!r}; "
            f"known below it: {', '.join(lower) or 'none'}"
        )
