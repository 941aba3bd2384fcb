"""The totals of a catalog made anew from its entries; `totals` keeps them."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from sqlalchemy import (
    Connection,
    Integer,
    LargeBinary,
    Select,
    case,
    delete,
    func,
    insert,
    literal,
    null,
    select,
    text,
    type_coerce,
    union_all,
)

from statestore.backends.sql.totals import Place
from statestore.entry import Status
from statestore.tables import SHARDS, entries, totals

Sums: TypeAlias = dict[Place, dict[str, int]]

_SUMS: Final = ("entries", "blob_bytes", "state_bytes", "quarantined", "pinned", "pinned_bytes")


def agree(connection: Connection) -> bool:
    """Whether the totals are those of the entries; one statement, so both are of one moment."""
    kept, counted = _both(connection)
    return kept == counted


def recount(connection: Connection) -> None:
    """Make the totals those of the entries. Others' wait until this transaction ends."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.execute(text(f"LOCK TABLE {totals.name} IN SHARE ROW EXCLUSIVE MODE"))
    kept, counted = _both(connection)
    if kept != counted:
        connection.execute(delete(totals))
        for (namespace, shard), sums in sorted(counted.items()):
            connection.execute(insert(totals).values(namespace=namespace, shard=shard, **sums))


def _both(connection: Connection) -> tuple[Sums, Sums]:
    """The totals as they are kept, and as they should be; without those of nothing."""
    kept: Sums = {}
    counted: Sums = {}
    for row in connection.execute(union_all(_kept(), _counted())):
        if row.first is None:
            sums, shard = kept, row.shard
        else:
            sums, shard = counted, bytes(row.first)[0] % SHARDS
        total = sums.setdefault((row.namespace, shard), dict.fromkeys(_SUMS, 0))
        for name in _SUMS:
            total[name] += int(getattr(row, name))
    return {place: total for place, total in kept.items() if any(total.values())}, counted


def _kept() -> Select[Any]:
    nothing = type_coerce(null(), LargeBinary).label("first")
    return select(totals.c.namespace, totals.c.shard, nothing, *(totals.c[name] for name in _SUMS))


def _counted() -> Select[Any]:
    first = func.substr(entries.c.digest, 1, 1, type_=LargeBinary).label("first")
    quarantined = entries.c.status == Status.QUARANTINED.value
    sums = {
        "entries": func.count(),
        "blob_bytes": func.sum(entries.c.blob_bytes),
        "state_bytes": func.sum(entries.c.state_bytes),
        "quarantined": func.sum(case((quarantined, 1), else_=0)),
        "pinned": func.sum(case((entries.c.pinned, 1), else_=0)),
        "pinned_bytes": func.sum(case((entries.c.pinned, entries.c.blob_bytes), else_=0)),
    }
    columns = (sums[name].label(name) for name in _SUMS)
    shard = literal(0, Integer).label("shard")
    return select(entries.c.namespace, shard, first, *columns).group_by(entries.c.namespace, first)
