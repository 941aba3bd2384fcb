"""Making room in the catalog: who goes, in one transaction.

Evictors are let in one after the other: each locks the row of ``ageing`` before it looks at the
totals, so together they remove no more than one alone would. An entry that another transaction
holds is in use and passed over, so evictors never wait for readers and writers, who do not wait
for each other's entries either: no circle of waiting can close.

The rows are read through an index, about as many as go: the cost is that of what is evicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, delete, false, select, update

from statestore.backends import totals
from statestore.backends.departures import remember
from statestore.backends.rows import HOLDING, Holding, to_holding
from statestore.entry import Departed, Status
from statestore.tables import ageing, entries

_PAGE: Final = 256  # rows of one statement


def evict(
    connection: Connection, to_bytes: int, now: float, namespace: str | None, limit: int
) -> list[Holding]:
    """Remove unpinned entries (of `namespace`), the quarantined ones first, then by score.

    Ends when the blobs of what is left come to at most `to_bytes`, or `limit` are gone. What was
    removed; the blobs are still there.
    """
    connection.execute(select(ageing.c.age).with_for_update())
    held = totals.usage(connection, namespace)
    gone: list[Holding] = []
    excess = held.blob_bytes - to_bytes
    mean_bytes = max(1.0, held.blob_bytes / max(1, held.entries))
    while excess > 0 and len(gone) < limit:
        count = min(limit - len(gone), _PAGE, math.ceil(excess / mean_bytes))
        going = list(_until(excess, _lowest(connection, namespace, count)))
        if not going:
            break
        _remove(connection, going, now)
        gone += going
        excess -= sum(entry.blob_bytes for entry in going)
    totals.account(connection, before=gone, after=[])
    _age(connection, gone)
    return gone


def order(namespace: str | None, count: int) -> Select[Any]:
    """The `count` entries to go next."""
    statement = select(*HOLDING).where(entries.c.pinned == false())
    if namespace is not None:
        statement = statement.where(entries.c.namespace == namespace)
    assert Status.QUARANTINED.value < Status.READY.value  # the index sorts them so
    return statement.order_by(entries.c.status, entries.c.score).limit(count)


def _lowest(connection: Connection, namespace: str | None, count: int) -> list[Holding]:
    statement = order(namespace, count).with_for_update(skip_locked=True)
    return [to_holding(row) for row in connection.execute(statement).mappings()]


def _until(excess: int, page: Sequence[Holding]) -> Iterator[Holding]:
    """Entries of `page` while there are too many bytes."""
    for entry in page:
        if excess <= 0:
            return
        yield entry
        excess -= entry.blob_bytes


def _remove(connection: Connection, going: Sequence[Holding], now: float) -> None:
    digests = [entry.key.digest for entry in going]
    connection.execute(delete(entries).where(entries.c.digest.in_(digests)))
    remember(connection, [Departed(entry.key, "evicted", now) for entry in going])


def _age(connection: Connection, gone: Sequence[Holding]) -> None:
    """What was quarantined says nothing of what the others are worth."""
    scores = [entry.score for entry in gone if entry.status == Status.READY.value]
    if scores:
        highest = max(scores)
        connection.execute(update(ageing).where(ageing.c.age < highest).values(age=highest))
