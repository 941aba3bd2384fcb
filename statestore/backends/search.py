"""The longest stored prefix: one statement, whatever the number of keys.

A prompt that grew finds its state near its end, so the newest `NEAR` keys are asked for first; the
others only where those have nothing, and still by the same statement.

SQLite looks for the first bytes of the digests, in their order, in an index that holds no more than
those: for a long prompt it reads each page once, and half as many. The digests themselves are
compared where the first bytes are equal. PostgreSQL has a hash index, which knows no order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Integer,
    LargeBinary,
    ScalarSelect,
    Select,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
)

from statestore.backends.database import Database
from statestore.backends.rows import DIGEST_BYTES, WANTED, digest_at, packed, to_entry
from statestore.entry import Entry, Status
from statestore.keys import StateKey
from statestore.tables import HEAD_BYTES, entries

NEAR: Final = 64  # keys of a prompt that grew by as many chunks

_DIGITS: Final = 8  # of a place among the keys, as text: SQLite makes no number of bytes
_POWERS: Final = 10 ** np.arange(_DIGITS - 1, -1, -1)


def _usable(now: ColumnElement[float]) -> ColumnElement[bool]:
    """Ready, and not expired at `now`."""
    unexpired = or_(entries.c.expires_at.is_(None), entries.c.expires_at > now)
    return (entries.c.status == Status.READY.value) & unexpired


def _statement(place: ColumnElement[int], is_stored: ColumnElement[bool]) -> Select[Any]:
    """The search, where `place` is that of a wanted digest among the keys, and `is_stored` says
    whether an entry has it.
    """

    def first(zone: ColumnElement[bool]) -> ScalarSelect[int]:
        least = select(func.min(place)).select_from(WANTED.join(entries, is_stored))
        return least.where(_usable(bindparam("now")), zone).scalar_subquery()

    # COALESCE asks for the rest only where the near ones have nothing. Not materialised, the search
    # would be written out, and run, for each mention of its result.
    nearest = func.coalesce(first(WANTED.c.position < NEAR), first(WANTED.c.position >= NEAR))
    deepest = select(nearest.label("position")).cte("deepest").prefix_with("MATERIALIZED")
    here = entries.c.digest == digest_at(deepest.c.position)
    return select(deepest.c.position, entries).select_from(deepest.join(entries, here))


def _by_head() -> Select[Any]:
    """The search in the order of the digests' first bytes."""
    at = WANTED.c.position
    place = cast(func.substr(bindparam("places"), at * _DIGITS + 1, _DIGITS), Integer)
    heads = bindparam("heads", type_=LargeBinary)
    # The sign keeps SQLite from the index of whole digests.
    same = literal_column("+entries.digest", LargeBinary) == digest_at(place)
    head = literal_column(f"substr(entries.digest, 1, {HEAD_BYTES})", LargeBinary)
    same_head = head == func.substr(heads, at * HEAD_BYTES + 1, HEAD_BYTES)
    return _statement(place, same_head & same)


_BY_DIGEST: Final = _statement(WANTED.c.position, entries.c.digest == digest_at(WANTED.c.position))
_BY_HEAD: Final = _by_head()


def longest(database: Database, keys: Sequence[StateKey], now: float) -> Entry | None:
    """The first of `keys` that is stored and usable at `now`. Raises as `Database.read`."""
    by_head = database.product == "sqlite"
    start = 0
    while start < len(keys):
        given = packed(keys[start:])
        if by_head:
            given |= _sorted(given["digests"])
        rows = database.rows(_BY_HEAD if by_head else _BY_DIGEST, {**given, "now": now})
        if not rows:
            return None
        position, *row = rows[0]
        start += position
        entry = to_entry(row)
        if entry is not None and entry.key == keys[start]:
            return entry
        start += 1  # damaged, or the same digest after another number of tokens
    return None


def _sorted(digests: bytes) -> dict[str, Any]:
    """The digests' first bytes, the near ones in their order and then the far ones, and the place
    of each.
    """
    first = np.frombuffer(digests, ">u4").reshape(-1, DIGEST_BYTES // HEAD_BYTES)[:, 0]
    zones = (first[:NEAR].argsort(), NEAR + first[NEAR:].argsort())
    order = np.concatenate(zones)
    text = (order[:, None] // _POWERS % 10 + ord("0")).astype(np.uint8)
    return {"heads": first[order].tobytes(), "places": text.tobytes().decode()}
