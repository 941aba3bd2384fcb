"""The longest stored prefix: one statement, whatever the number of keys.

A prompt that grew finds its state near its end, so the newest `NEAR` keys are asked for first; the
others only where those have nothing, and still by the same statement.

A SQLite catalog is asked for what its `LookupFilter` lets pass, nearly always one key or none;
PostgreSQL has a hash index. One key alone is asked for by a statement of a third of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, ScalarSelect, Select, bindparam, func, literal, or_, select

from statestore.backends.sql.database import Database, Row
from statestore.backends.sql.rows import WANTED, digest_at, packed, to_entry
from statestore.entry import Entry, Status
from statestore.keys import StateKey
from statestore.tables import entries

NEAR: Final = 64  # keys of a prompt that grew by as many chunks


def _usable(now: ColumnElement[float]) -> ColumnElement[bool]:
    """Ready, and not expired at `now`."""
    unexpired = or_(entries.c.expires_at.is_(None), entries.c.expires_at > now)
    return (entries.c.status == Status.READY.value) & unexpired


def _statement() -> Select[Any]:
    at = WANTED.c.position

    def first(zone: ColumnElement[bool]) -> ScalarSelect[int]:
        # No join: of a table that was never analysed PostgreSQL knows so little that it went
        # through all ready entries for each key. A subquery can only go by the digest.
        one = select(_usable(bindparam("now"))).where(entries.c.digest == digest_at(at))
        return select(func.min(at)).where(one.scalar_subquery(), zone).scalar_subquery()

    # COALESCE asks for the rest only where the near ones have nothing. Not materialised, the search
    # would be written out, and run, for each mention of its result.
    nearest = func.coalesce(first(at < NEAR), first(at >= NEAR))
    deepest = select(nearest.label("position")).cte("deepest").prefix_with("MATERIALIZED")
    here = entries.c.digest == digest_at(deepest.c.position)
    return select(deepest.c.position, entries).select_from(deepest.join(entries, here))


_NEAREST: Final = _statement()
_ONE: Final = select(literal(0).label("position"), entries).where(
    entries.c.digest == bindparam("digest"), _usable(bindparam("now"))
)


def longest(
    database: Database, keys: Sequence[StateKey], now: float, until: float | None = None
) -> Entry | None:
    """The first of `keys` that is stored and usable at `now`. Raises as `Database.rows`."""
    start = 0
    while start < len(keys):
        rows = _ask(database, keys[start:], now, until)
        if not rows:
            return None
        position, *row = rows[0]
        start += position
        entry = to_entry(row)
        if entry is not None and entry.key == keys[start]:
            return entry
        start += 1  # damaged, or the same digest after another number of tokens
    return None


def _ask(
    database: Database, keys: Sequence[StateKey], now: float, until: float | None
) -> list[Row]:
    if len(keys) == 1:
        return database.rows(_ONE, {"digest": keys[0].digest, "now": now}, until)
    return database.rows(_NEAREST, {**packed(keys), "now": now}, until)
