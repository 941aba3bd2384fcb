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
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Select, delete, false, select, update

from statestore.backends import totals
from statestore.backends.departures import remember
from statestore.entry import Departed, Status
from statestore.keys import StateKey
from statestore.tables import ageing, entries

_PAGE: Final = 256  # rows of one statement


@dataclass(frozen=True, slots=True)
class Victim:
    """What is read of an entry that goes: a row that is damaged elsewhere goes like any other."""

    key: StateKey
    namespace: str
    blob: str
    blob_bytes: int
    state_bytes: int
    status: str
    score: float
    pinned: bool = False


_COLUMNS: Final = [
    entries.c[name]
    for name in (
        "digest",
        "n_tokens",
        "namespace",
        "blob",
        "blob_bytes",
        "state_bytes",
        "status",
        "score",
    )
]


def evict(
    connection: Connection, to_bytes: int, now: float, namespace: str | None, limit: int
) -> list[Victim]:
    """Remove unpinned entries (of `namespace`), the quarantined ones first, then by score.

    Ends when the blobs of what is left come to at most `to_bytes`, or `limit` are gone. What was
    removed; the blobs are still there.
    """
    connection.execute(select(ageing.c.age).with_for_update())
    held = totals.usage(connection, namespace)
    gone: list[Victim] = []
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
    statement = select(*_COLUMNS).where(entries.c.pinned == false())
    if namespace is not None:
        statement = statement.where(entries.c.namespace == namespace)
    assert Status.QUARANTINED.value < Status.READY.value  # the index sorts them so
    return statement.order_by(entries.c.status, entries.c.score).limit(count)


def _lowest(connection: Connection, namespace: str | None, count: int) -> list[Victim]:
    statement = order(namespace, count).with_for_update(skip_locked=True)
    return [
        Victim(StateKey(bytes(digest), n_tokens), *rest)
        for digest, n_tokens, *rest in connection.execute(statement)
    ]


def _until(excess: int, page: Sequence[Victim]) -> Iterator[Victim]:
    """Entries of `page` while there are too many bytes."""
    for entry in page:
        if excess <= 0:
            return
        yield entry
        excess -= entry.blob_bytes


def _remove(connection: Connection, going: Sequence[Victim], now: float) -> None:
    digests = [entry.key.digest for entry in going]
    connection.execute(delete(entries).where(entries.c.digest.in_(digests)))
    remember(connection, [Departed(entry.key, "evicted", now) for entry in going])


def _age(connection: Connection, gone: Sequence[Victim]) -> None:
    """What was quarantined says nothing of what the others are worth."""
    scores = [entry.score for entry in gone if entry.status == Status.READY.value]
    if scores:
        highest = max(scores)
        connection.execute(update(ageing).where(ageing.c.age < highest).values(age=highest))
