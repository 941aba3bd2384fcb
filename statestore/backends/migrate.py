"""Brings a catalog to the tables of this release, when it is opened.

A catalog at head costs one SELECT and does not load Alembic. An empty or an older one is upgraded
inside one transaction that holds the write lock: of many processes that open it at once one
upgrades, and the others, let in one after the other, find it done. A newer one is refused by
name.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, column, inspect, select, table

from statestore.backends.database import Database
from statestore.errors import SchemaVersionError
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


def revision(connection: Connection) -> str | None:
    """The catalog's revision; ``None`` before the first."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    return connection.scalar(select(_VERSION.c.version_num))


def migrations_dir() -> Path:
    """Where the revisions lie: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parent.parent
    candidates = (package / "_migrations", package.parent / "migrations")
    for candidate in candidates:
        if (candidate / "env.py").is_file():
            return candidate
    raise SchemaVersionError(f"no migrations at {candidates[0]}: install rwkv-statestore again")


def _needs_upgrade(found: str | None, place: str) -> bool:
    if found is not None and found not in REVISIONS:
        raise SchemaVersionError(
            f"{place} is at revision {found!r}, this release knows up to {HEAD!r}: "
            "a newer release made it; upgrade here (pip install -U rwkv-statestore)"
        )
    return found != HEAD


def _upgrade(database: Database) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))

    def work(connection: Connection) -> None:
        with _alembic:
            if not _needs_upgrade(revision(connection), database.place):
                return
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    database.write(work)
