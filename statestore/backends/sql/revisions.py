"""An operator's view of a catalog's revision: which one it is at, and the ways up and down.

Looking changes nothing. Up and down happen under the catalog's write lock, each in one
transaction: many who try at once are let in one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from statestore.backends.sql.database import Database
from statestore.backends.sql.file import CATALOG
from statestore.backends.sql.migrate import bring_to_head, downgrade, revision
from statestore.backends.sql.reading import may_be_written, open_for_reading
from statestore.backends.sql.sqlite import open_database
from statestore.blobs.filesystem import storage_error
from statestore.errors import UnavailableError
from statestore.tables import HEAD, REVISIONS

_PATIENCE_S: Final = 60.0


class Standing(StrEnum):
    """How a catalog's tables stand to this release."""

    EMPTY = "empty"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"


@dataclass(frozen=True, slots=True)
class Status:
    """The revision that a catalog is at, beside the one that this release needs."""

    found: str | None  # `None`: no tables
    head: str = HEAD

    @property
    def standing(self) -> Standing:
        """How the two stand to each other."""
        if self.found is None:
            return Standing.EMPTY
        if self.found not in REVISIONS:
            return Standing.NEWER
        return Standing.CURRENT if self.found == self.head else Standing.OLDER


@dataclass(frozen=True, slots=True)
class Revisions:
    """The revision of one catalog. Closes its database; a context manager."""

    database: Database

    @property
    def place(self) -> str:
        """The catalog's name, without secrets."""
        return self.database.place

    def status(self) -> Status:
        """Which revision the catalog is at."""
        return Status(self.database.read(revision))

    def upgrade(self) -> None:
        """To this release's tables. Raises `SchemaVersionError` if a newer one made them."""
        bring_to_head(self.database)

    def downgrade(self, target: str) -> None:
        """Back to `target`, or ``"base"`` for none; what newer tables and columns held is lost.

        Raises:
            InputError: `target` is not a revision below the present one.
            SchemaVersionError: a newer release made the tables.
        """
        downgrade(self.database, target)

    def close(self) -> None:
        """Release connections."""
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def of_file(root: Path) -> Revisions:
    """Those of the store in the directory `root`, which exists. Opening it would upgrade it."""
    path = root / CATALOG
    try:
        there = path.is_file()
    except OSError as error:
        raise storage_error(error, f"looking into {root}") from error
    if not there:
        raise UnavailableError(f"{path} is not there: a file store is made when it is opened")
    if not may_be_written(root, path):
        return Revisions(open_for_reading(path, _PATIENCE_S))
    return Revisions(open_database(path, _PATIENCE_S))
