"""What is asked of the catalog: one function each, inside a transaction that the caller began.

Plain SQL of every dialect. Every function that adds, changes or removes an entry keeps the totals
right in the same transaction, and comes to them last: rows are locked in the order entries,
departed, totals. Blobs are known here by name only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    delete,
    insert,
    select,
    tuple_,
    update,
)

from statestore.backends.sql import totals
from statestore.backends.sql.departures import forget, remember, remembered
from statestore.backends.sql.rows import (
    HOLDING,
    Holding,
    conditions,
    to_entries,
    to_entry,
    to_holding,
    to_row,
)
from statestore.backends.sql.unsynced import unsynced
from statestore.entry import Departed, Entry, EntryFilter, Status
from statestore.keys import StateKey
from statestore.tables import entries

#: A place in the order of use: moment and digest.
Place: TypeAlias = tuple[float, bytes]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_COUNTED: Final = frozenset({"status", "pinned"})  # of what `change` may set, in the totals


@dataclass(frozen=True, slots=True)
class Admitted:
    """What became of an entry that wanted in."""

    won: bool
    replaced: Holding | None = None  # its blob is no longer named


def admit(connection: Connection, entry: Entry) -> Admitted:
    """Insert `entry`, unless a usable one of its digest is there; another one is replaced."""
    locked = _of(entry.key.digest).with_for_update()
    row = connection.execute(locked).mappings().first()
    if _is_usable(row, entry.created_at):
        return Admitted(won=False)
    before = None if row is None else to_holding(row)
    if before is None:
        connection.execute(insert(entries), to_row(entry))
    else:
        _set(connection, entry.key.digest, to_row(entry))
    forget(connection, [entry.key.digest])
    totals.account(connection, [] if before is None else [before], [entry])
    return Admitted(won=True, replaced=before)


def adopt(connection: Connection, entry: Entry) -> Admitted:
    """As `admit`, but what is remembered as removed stays so."""
    if remembered(connection, [entry.key]):
        return Admitted(won=False)
    return admit(connection, entry)


def settle(connection: Connection, key: StateKey) -> None:
    """Have the transaction wait for a server's disk, and so for all that was written before it: to
    lock a row is to write.
    """
    row = select(entries.c.digest).where(entries.c.digest == key.digest)
    connection.execute(row.with_for_update(read=True, key_share=True))


def touch(connection: Connection, key: StateKey, columns: Mapping[str, Any]) -> None:
    """Count a hit, and set `columns`."""
    here = (entries.c.digest == key.digest, entries.c.n_tokens == key.n_tokens)
    statement = update(entries).where(*here).values(hits=entries.c.hits + 1, **columns)
    connection.execute(unsynced(connection, statement))


def change(
    connection: Connection, key: StateKey, columns: Mapping[str, Any], blob: str | None
) -> bool:
    """Set `columns`, if the entry is there and (with `blob`) names that blob."""
    before = _named(connection, key, blob)
    if before is None:
        return False
    if columns:
        _set(connection, key.digest, columns)
        after = replace(before, **{name: columns[name] for name in columns.keys() & _COUNTED})
        totals.account(connection, [before], [after])
    return True


def remove(
    connection: Connection, key: StateKey, reason: str, now: float, blob: str | None
) -> Holding | None:
    """Delete the entry, if it is there and (with `blob`) names that blob. The removed one."""
    before = _named(connection, key, blob)
    if before is not None:
        _remove(connection, before, reason, now)
    return before


def remove_expired(connection: Connection, entry: Holding, now: float) -> bool:
    """Delete `entry`, unless it was replaced or given more time since it was listed."""
    before = _named(connection, entry.key, entry.blob)
    if before is None or before.expires_at is None or before.expires_at > now:
        return False
    _remove(connection, before, "expired", now)
    return True


def page(
    connection: Connection, where: EntryFilter, after: Place | None, limit: int
) -> tuple[list[Entry], Place | None]:
    """The next entries after a place in the order of use, newest first, out of `limit` rows; and
    where to go on, ``None`` at the end. Labels are not looked at.

    A first page comes by whatever index leads to few entries. Where there is a second one, there
    are many: SQLite, which knows nothing of how many, then goes along the order itself.
    """
    walked = after is not None and connection.dialect.name == "sqlite"
    statement = select(entries).where(*conditions(where, walked=walked))
    if after is not None:
        statement = statement.where(tuple_(entries.c.used_at, entries.c.digest) < tuple_(*after))
    order = (entries.c.used_at.desc(), entries.c.digest.desc())
    rows = connection.execute(statement.order_by(*order).limit(limit)).all()
    last = (rows[-1].used_at, rows[-1].digest) if len(rows) == limit else None
    return to_entries(rows), last


def expired(connection: Connection, now: float, limit: int) -> list[Holding]:
    """Up to `limit` entries that have expired, the longest expired first."""
    statement = select(*HOLDING).where(entries.c.expires_at <= now)
    rows = connection.execute(statement.order_by(entries.c.expires_at).limit(limit)).mappings()
    return [to_holding(row) for row in rows]


def named(connection: Connection, blobs: Sequence[str]) -> set[str]:
    """Those of `blobs` that an entry names. Only what begins with an entry's digest is its blob."""
    begun = {name: match[0] for name in blobs if (match := _DIGEST.match(name))}
    digests = {bytes.fromhex(digest) for digest in begun.values()}
    known = select(entries.c.blob).where(entries.c.digest.in_(digests))
    return begun.keys() & set(connection.scalars(known))


def _of(digest: bytes) -> Select[Any]:
    return select(entries).where(entries.c.digest == digest)


def _is_usable(row: RowMapping | None, now: float) -> bool:
    entry = None if row is None else to_entry(tuple(row.values()))
    if entry is None or entry.status is not Status.READY:
        return False
    return entry.expires_at is None or entry.expires_at > now


def _named(connection: Connection, key: StateKey, blob: str | None) -> Holding | None:
    """The entry, if it is there and (with `blob`) names that blob; nobody else changes it until
    the transaction ends.
    """
    statement = select(*HOLDING).where(entries.c.digest == key.digest).with_for_update()
    row = connection.execute(statement).mappings().first()
    entry = None if row is None else to_holding(row)
    if entry is None or entry.key != key or (blob is not None and entry.blob != blob):
        return None
    return entry


def _remove(connection: Connection, entry: Holding, reason: str, now: float) -> None:
    connection.execute(delete(entries).where(entries.c.digest == entry.key.digest))
    remember(connection, [Departed(entry.key, reason, now)])
    totals.account(connection, [entry], [])


def _set(connection: Connection, digest: bytes, columns: Mapping[str, Any]) -> None:
    connection.execute(update(entries).where(entries.c.digest == digest).values(**columns))
