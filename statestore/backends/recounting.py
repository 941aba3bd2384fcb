"""The totals of a catalog made anew from its entries; `totals` keeps them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, LargeBinary, case, delete, func, insert, select, text

from statestore.backends.totals import Place
from statestore.entry import Status
from statestore.tables import SHARDS, entries, totals

_SUMS = ("entries", "blob_bytes", "state_bytes", "quarantined", "pinned", "pinned_bytes")


def recount(connection: Connection, *, mend: bool) -> bool:
    """Whether the totals are those of the entries; with `mend`, they are from now on.

    Others' totals wait until this transaction ends, so that what is compared belongs together.
    """
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time
        connection.execute(text(f"LOCK TABLE {totals.name} IN SHARE ROW EXCLUSIVE MODE"))
    known = {(row.namespace, row.shard): _sums(row) for row in connection.execute(select(totals))}
    known = {place: sums for place, sums in known.items() if any(sums.values())}
    found = _counted(connection)
    if found != known and mend:
        connection.execute(delete(totals))
        for (namespace, shard), sums in sorted(found.items()):
            connection.execute(insert(totals).values(namespace=namespace, shard=shard, **sums))
    return found == known


def _counted(connection: Connection) -> dict[Place, dict[str, int]]:
    """What the totals should be, by place."""
    first = func.substr(entries.c.digest, 1, 1, type_=LargeBinary).label("first")
    quarantined = entries.c.status == Status.QUARANTINED.value
    statement = select(
        entries.c.namespace,
        first,
        func.count().label("entries"),
        func.sum(entries.c.blob_bytes).label("blob_bytes"),
        func.sum(entries.c.state_bytes).label("state_bytes"),
        func.sum(case((quarantined, 1), else_=0)).label("quarantined"),
        func.sum(case((entries.c.pinned, 1), else_=0)).label("pinned"),
        func.sum(case((entries.c.pinned, entries.c.blob_bytes), else_=0)).label("pinned_bytes"),
    ).group_by(entries.c.namespace, first)
    sums: dict[Place, dict[str, int]] = {}
    for row in connection.execute(statement):
        place = (row.namespace, bytes(row.first)[0] % SHARDS)
        total = sums.setdefault(place, dict.fromkeys(_SUMS, 0))
        for name, amount in _sums(row).items():
            total[name] += amount
    return sums


def _sums(row: Any) -> dict[str, int]:  # noqa: ANN401 - a row of any statement with these names
    return {name: int(getattr(row, name)) for name in _SUMS}
