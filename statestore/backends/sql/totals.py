"""The sums over all entries that are kept beside them, and what is summed.

Whoever changes entries calls `account` last in its transaction: the rows here are the ones that
writers meet at, and they are locked in one order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, Protocol, TypeAlias

from sqlalchemy import Connection, delete, func, insert, select, tuple_, update

from statestore.entry import Status, Usage
from statestore.keys import StateKey
from statestore.tables import SHARDS, ageing, totals

#: What is summed.
SUMS: Final = ("entries", "blob_bytes", "state_bytes", "quarantined", "pinned", "pinned_bytes")

#: One row's place in ``totals``: namespace and shard.
Place: TypeAlias = tuple[str, int]


class Counted(Protocol):
    """What the totals need to know of an entry."""

    @property
    def key(self) -> StateKey: ...  # noqa: D102 - as `Entry`

    @property
    def namespace(self) -> str: ...  # noqa: D102

    @property
    def blob_bytes(self) -> int: ...  # noqa: D102

    @property
    def state_bytes(self) -> int: ...  # noqa: D102

    @property
    def status(self) -> str: ...  # noqa: D102

    @property
    def pinned(self) -> bool: ...  # noqa: D102


def usage(connection: Connection, namespace: str | None = None) -> Usage:
    """Totals over all entries, or a namespace's; the age is the whole store's."""
    sums = [func.coalesce(func.sum(totals.c[name]), 0).label(name) for name in SUMS]
    statement = select(*sums, select(ageing.c.age).scalar_subquery().label("age"))
    if namespace is not None:
        statement = statement.where(totals.c.namespace == namespace)
    row = connection.execute(statement).one()
    return Usage(
        entries=int(row.entries),
        blob_bytes=int(row.blob_bytes),
        state_bytes=int(row.state_bytes),
        quarantined=int(row.quarantined),
        pinned=int(row.pinned),
        age=float(row.age),
        pinned_bytes=int(row.pinned_bytes),
    )


def account(connection: Connection, before: Iterable[Counted], after: Iterable[Counted]) -> None:
    """Move the totals from what entries were to what they are."""
    changes: dict[Place, Counter[str]] = {}
    for sign, entries in ((-1, before), (1, after)):
        for entry in entries:
            change = changes.setdefault((entry.namespace, entry.key.digest[0] % SHARDS), Counter())
            for name, amount in parts(entry).items():
                change[name] += sign * amount
    for place in sorted(changes):
        change = changes[place]
        if any(change.values()):
            _add(connection, place, change)


def drop_empty(connection: Connection) -> None:
    """Forget the rows of namespaces that hold nothing."""
    place = (totals.c.namespace, totals.c.shard)
    empty = select(*place).where(totals.c.entries == 0).with_for_update(skip_locked=True)
    connection.execute(delete(totals).where(tuple_(*place).in_(empty), totals.c.entries == 0))


def parts(entry: Counted) -> dict[str, int]:
    """What one entry adds to the totals."""
    return {
        "entries": 1,
        "blob_bytes": entry.blob_bytes,
        "state_bytes": entry.state_bytes,
        "quarantined": int(entry.status == Status.QUARANTINED.value),
        "pinned": int(entry.pinned),
        "pinned_bytes": entry.blob_bytes if entry.pinned else 0,
    }


def _add(connection: Connection, place: Place, change: Counter[str]) -> None:
    values: dict[str, Any] = {name: totals.c[name] + change[name] for name in SUMS if change[name]}
    here = (totals.c.namespace == place[0], totals.c.shard == place[1])
    if not connection.execute(update(totals).where(*here).values(**values)).rowcount:
        first = {name: change[name] for name in SUMS}
        connection.execute(insert(totals).values(namespace=place[0], shard=place[1], **first))
