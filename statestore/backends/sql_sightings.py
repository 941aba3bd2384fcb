"""The index of seen prefixes in the catalog: one row for each, the newest `SIGHTINGS`.

Rows are numbered as they come, and what is `limit` numbers behind the newest goes with the next
note: trimming costs what it trims. Prefixes are eight bytes of a digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, LargeBinary, bindparam, delete, func, select, text

from statestore.backends.database import Database
from statestore.backends.sightings import SIGHTINGS
from statestore.tables import PREFIX_BYTES, sightings

# It comes behind an answer; another process that holds the write lock is not waited for.
_PATIENCE_S: Final = 0.25
_TRIMMED: Final = 4096  # rows of one note, at most

# Halves `low` to `high`: the first `low` are known to be there, those from `high` on not to be.
_KNOWN: Final = (
    "EXISTS (SELECT 1 FROM sightings WHERE prefix ="  # noqa: S608 - constants
    f" substr(:prefixes, ((low + high + 1) / 2 - 1) * {PREFIX_BYTES} + 1, {PREFIX_BYTES}))"
)
_SEEN: Final = text(
    "WITH RECURSIVE search(low, high) AS ("  # noqa: S608 - constants
    " SELECT 0, CAST(:count AS INTEGER)"
    f" UNION ALL SELECT CASE WHEN {_KNOWN} THEN (low + high + 1) / 2 ELSE low END,"
    f" CASE WHEN {_KNOWN} THEN high ELSE (low + high + 1) / 2 - 1 END"
    " FROM search WHERE low < high"
    ") SELECT max(low) FROM search"
).bindparams(bindparam("prefixes", type_=LargeBinary))

# In one order, whoever writes: two that note the same prefixes do not wait for each other in turn.
_NOTE: Final = text(
    "WITH RECURSIVE wanted(place) AS ("  # noqa: S608 - constants
    " SELECT 0 UNION ALL SELECT place + 1 FROM wanted WHERE place + 1 < :count"
    "), noted(prefix) AS ("
    f" SELECT DISTINCT substr(:prefixes, place * {PREFIX_BYTES} + 1, {PREFIX_BYTES}) FROM wanted"
    ") INSERT INTO sightings (prefix) SELECT prefix FROM noted"
    " WHERE NOT EXISTS (SELECT 1 FROM sightings AS known WHERE known.prefix = noted.prefix)"
    " ORDER BY prefix ON CONFLICT DO NOTHING"
).bindparams(bindparam("prefixes", type_=LargeBinary))


class SqlSightings:
    """As the port says.

    Args:
        database: a catalog at head.
        limit: sightings that are kept.
    """

    def __init__(self, database: Database, limit: int = SIGHTINGS) -> None:
        self._database = database
        self._limit = limit

    def seen(self, digests: Sequence[bytes]) -> int:
        """As the port says; one statement."""
        if not digests:
            return 0
        return self._database.read(lambda tx: int(tx.scalar(_SEEN, _packed(digests)) or 0))

    def note(self, digests: Sequence[bytes]) -> None:
        """As the port says; one transaction."""
        if digests:
            self._database.write(lambda tx: self._note(tx, digests), patience_s=_PATIENCE_S)

    def _note(self, connection: Connection, digests: Sequence[bytes]) -> None:
        connection.execute(_NOTE, _packed(digests))
        newest = connection.scalar(select(func.max(sightings.c.id))) or 0
        # what another transaction is about to remove is left to it: nobody waits
        old = select(sightings.c.id).where(sightings.c.id <= newest - self._limit)
        old = old.order_by(sightings.c.id).limit(_TRIMMED).with_for_update(skip_locked=True)
        connection.execute(delete(sightings).where(sightings.c.id.in_(old)))


def _packed(digests: Sequence[bytes]) -> dict[str, Any]:
    """Parameters for a statement: two, however many digests."""
    joined = b"".join(digest[:PREFIX_BYTES] for digest in digests)
    return {"prefixes": joined, "count": len(digests)}
