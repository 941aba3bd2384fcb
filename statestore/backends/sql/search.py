"""The longest stored prefix: one statement, whatever the number of keys.

A prompt that grew finds its state near its end, so the newest `NEAR` keys are asked for first; the
others only where those have nothing, and still by the same statement.

A SQLite catalog is asked for what its `LookupFilter` lets pass, nearly always one key or none;
PostgreSQL has a hash index. One key alone is asked for by a statement of a third of the time.

Of a longer prompt PostgreSQL is asked first which of its stretches have any entry
(`StateKey.anchor`), and only for the keys of those, the nearest first: what costs is the pages that
a question lies on. While entries without an anchor are there, all keys are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    ScalarSelect,
    Select,
    bindparam,
    func,
    literal,
    or_,
    select,
    text,
)

from statestore.backends.sql.database import Database, Row
from statestore.backends.sql.rows import DIGEST_BYTES, WANTED, digest_at, packed, to_entry
from statestore.entry import Entry, Status
from statestore.keys import StateKey
from statestore.tables import entries

NEAR: Final = 64  # keys of a prompt that grew by as many chunks
LONG: Final = NEAR + 1  # keys; fewer are asked for in less time than their stretches

_ANCHOR: Final = attrgetter("anchor")


_DIGEST_AT: Final = f"substr(:digests, at * {DIGEST_BYTES} + 1, {DIGEST_BYTES})"
_USABLE_AT: Final = (
    "(SELECT status = :status AND (expires_at IS NULL OR expires_at > :now)"  # noqa: S608 - constants
    f" FROM entries WHERE digest = {_DIGEST_AT})"
)


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

# Ordered inequalities, and no equalities: of few anchors that many entries share, or that changed
# since the table was analysed, PostgreSQL would go through the table for one that is not there.
# Parameters that tell how many rows come are hidden behind a SELECT: an estimate that is the same
# for all of them lets the server keep one plan, where it planned each lookup anew for 0.4 ms.
_COUNT: Final = "(SELECT CAST(:count AS integer))"
_BY_STRETCHES: Final = text(
    "WITH known AS MATERIALIZED ("  # noqa: S608 - constants
    " SELECT place, size FROM unnest((SELECT CAST(:anchors AS bigint[])),"
    " (SELECT CAST(:places AS integer[])), (SELECT CAST(:sizes AS integer[])))"
    " AS stretch(anchor, place, size)"
    " WHERE (SELECT e.anchor FROM entries AS e WHERE e.anchor >= stretch.anchor"
    " ORDER BY e.anchor LIMIT 1) = stretch.anchor"
    "), deepest AS MATERIALIZED (SELECT"
    " CASE WHEN (SELECT e.anchor IS NULL FROM entries AS e ORDER BY e.anchor DESC LIMIT 1)"
    " THEN coalesce("
    f"(SELECT min(at) FROM generate_series(0, {NEAR - 1}) AS near(at) WHERE {_USABLE_AT}),"
    f" (SELECT min(at) FROM generate_series({NEAR}, {_COUNT} - 1) AS far(at)"
    f" WHERE {_USABLE_AT}))"
    " ELSE coalesce("
    "(SELECT min(at) FROM (SELECT place, size FROM known ORDER BY place LIMIT 1) AS nearest,"
    f" generate_series(place, place + size - 1) AS near(at) WHERE {_USABLE_AT}),"
    " (SELECT min(at) FROM known, generate_series(place, place + size - 1) AS far(at)"
    f" WHERE {_USABLE_AT})) END AS at)"
    f" SELECT at, {', '.join(f'entries.{column.name}' for column in entries.c)}"
    f" FROM deepest JOIN entries ON entries.digest = {_DIGEST_AT}"
).bindparams(bindparam("digests", type_=LargeBinary), status=Status.READY.value)
_ONE: Final = select(literal(0).label("position"), entries).where(
    entries.c.digest == bindparam("digest"), _usable(bindparam("now"))
)


def longest(
    database: Database, keys: Sequence[StateKey], now: float, until: float | None = None
) -> Entry | None:
    """The first of `keys` that is stored and usable at `now`. Raises as `Database.rows`."""
    now = float(now)  # a plan is of the types that it was made for
    start = 0
    while start < len(keys):
        rows = _ask(database, keys[start:], now, until)
        if not rows:
            return None
        position, *row = rows[0]
        start += position
        entry = to_entry(row, keys[start])
        if entry is not None and entry.key == keys[start]:
            return entry
        start += 1  # damaged, or the same digest after another number of tokens
    return None


def _ask(
    database: Database, keys: Sequence[StateKey], now: float, until: float | None
) -> list[Row]:
    if len(keys) == 1:
        return database.rows(_ONE, {"digest": keys[0].digest, "now": now}, until)
    asked = {**packed(keys), "now": now}
    if len(keys) >= LONG and database.product == "postgresql" and (along := _stretches(keys)):
        return database.rows(_BY_STRETCHES, {**asked, **along}, until)
    return database.rows(_NEAREST, asked, until)


def _stretches(keys: Sequence[StateKey]) -> dict[str, list[int]] | None:
    """The runs of `keys` of one anchor: it, the place where it begins and its length; ``None``: of
    some the anchor is not known.
    """
    anchors, places, sizes = [], [], []
    place = 0
    for anchor, run in groupby(map(_ANCHOR, keys)):
        if anchor is None:
            return None
        size = len(list(run))
        anchors.append(anchor)
        places.append(place)
        sizes.append(size)
        place += size
    return {"anchors": anchors, "places": places, "sizes": sizes}
