"""The index of seen prefixes in the catalog: one row for each, the newest `SIGHTINGS`.

Rows are numbered as they come, and what is `limit` numbers behind the newest goes with the next
note: trimming costs what it trims. The index is in the order of marks, so a prompt's rows come and
go in a few of its pages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    LargeBinary,
    Select,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    literal,
    select,
    text,
)

from statestore.backends.sightings import SIGHTINGS
from statestore.backends.sql.database import Database
from statestore.backends.sql.unsynced import UNSYNCED
from statestore.keys.second_sight import MARK_BYTES
from statestore.tables import sightings

# It comes behind an answer; another process that holds the write lock is not waited for.
_PATIENCE_S: Final = 0.25
_TRIMMED: Final = 4096  # rows of one note, at most


def _mark_at(place: ColumnElement[int]) -> ColumnElement[bytes]:
    """The mark at `place` of the packed ones."""
    marks = bindparam("marks", type_=LargeBinary)
    return func.substr(marks, place * MARK_BYTES + 1, MARK_BYTES, type_=LargeBinary)


def _halving() -> Select[Any]:
    """How far the marks are there: the first `low` are known to be, those from `high` on not."""
    start = select(literal(0).label("low"), cast(bindparam("count"), Integer).label("high"))
    search = start.cte("search", recursive=True)
    low, high = search.c.low, search.c.high
    middle = (low + high + 1) // 2
    known = exists().where(sightings.c.prefix == _mark_at(middle - 1))
    step = select(case((known, middle), else_=low), case((known, high), else_=middle - 1))
    search = search.union_all(step.where(low < high))
    return select(func.max(search.c.low))


_SEEN: Final = _halving()

# In one order, whoever writes: two that note the same marks do not wait for each other in turn.
_NOTE: Final = text(
    "WITH RECURSIVE wanted(place) AS ("  # noqa: S608 - constants
    " SELECT 0 UNION ALL SELECT place + 1 FROM wanted WHERE place + 1 < :count"
    "), noted(prefix) AS ("
    f" SELECT DISTINCT substr(:marks, place * {MARK_BYTES} + 1, {MARK_BYTES}) FROM wanted"
    ") INSERT INTO sightings (prefix) SELECT prefix FROM noted"
    " WHERE NOT EXISTS (SELECT 1 FROM sightings AS known WHERE known.prefix = noted.prefix)"
    " ORDER BY prefix ON CONFLICT DO NOTHING"
).bindparams(bindparam("marks", type_=LargeBinary))

_ENDS: Final = select(
    select(func.min(sightings.c.id)).scalar_subquery(),
    select(func.max(sightings.c.id)).scalar_subquery(),
)
_ENDS_UNSYNCED: Final = _ENDS.add_columns(UNSYNCED)  # a crash may lose the newest
# Between two numbers: PostgreSQL takes the index, whatever it believes of the table.
_TRIM: Final = delete(sightings).where(
    sightings.c.id.between(bindparam("lowest"), bindparam("highest"))
)


class SqlSightings:
    """As the port says.

    Args:
        database: a catalog at head.
        limit: sightings that are kept.
    """

    def __init__(self, database: Database, limit: int = SIGHTINGS) -> None:
        self._database = database
        self._limit = limit

    def seen(self, marks: Sequence[bytes]) -> int:
        """As the port says; one statement."""
        return self._seen(marks, None)

    def seen_within(self, marks: Sequence[bytes], limit_s: float) -> int:
        """As `seen`, in time; see `PunctualSightings`."""
        return self._seen(marks, time.monotonic() + limit_s)

    def _seen(self, marks: Sequence[bytes], until: float | None) -> int:
        if not marks:
            return 0
        ((count,),) = self._database.rows(_SEEN, _packed(marks), until)
        return int(count)

    def note(self, marks: Sequence[bytes]) -> None:
        """As the port says; one transaction."""
        if marks:
            self._database.write(lambda tx: self._note(tx, marks), patience_s=_PATIENCE_S)

    def _note(self, connection: Connection, marks: Sequence[bytes]) -> None:
        connection.execute(_NOTE, _packed(marks))
        server = connection.dialect.name == "postgresql"
        lowest, newest, *_ = connection.execute(_ENDS_UNSYNCED if server else _ENDS).one()
        highest = min(newest - self._limit, lowest + _TRIMMED)
        if highest >= lowest:
            connection.execute(_TRIM, {"lowest": lowest, "highest": highest})


def _packed(marks: Sequence[bytes]) -> dict[str, Any]:
    """Parameters for a statement: two, however many marks."""
    return {"marks": b"".join(marks), "count": len(marks)}
