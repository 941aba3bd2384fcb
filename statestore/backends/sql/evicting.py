"""Making room in the catalog: who goes, in one transaction.

Evictors are let in one after the other: each locks the row of ``ageing`` before it looks at the
totals, so together they remove no more than one alone would. An entry that another transaction
holds is in use and passed over, so evictors never wait for readers and writers, who do not wait
for each other's entries either: no circle of waiting can close.

The rows are read through an index, about as many as go: the cost is that of what is evicted. A
judge is shown the rows behind a random digest, which digests make a random sample. They are not
locked: what is used before the lowest of them are, stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, delete, false, func, select, update

from statestore.backends.sql import totals
from statestore.backends.sql.departures import remember
from statestore.backends.sql.rows import HOLDING, Holding, moment, to_holding
from statestore.backends.sql.samples import sample
from statestore.entry import Candidate, Departed, Status
from statestore.eviction.policy import Judge, lowest, sampled
from statestore.tables import ageing, entries

_PAGE: Final = 256  # rows of one statement
_JUDGED: Final = select(*HOLDING, entries.c.used_at).where(entries.c.pinned == false())


def evict(
    connection: Connection,
    to_bytes: int,
    now: float,
    namespace: str | None,
    limit: int,
    judge: Judge | None = None,
) -> list[Holding]:
    """Remove unpinned entries (of `namespace`): what has expired, then what is quarantined, then by
    score, or as `judge` ranks; see `Backend.evict`.

    Ends when the blobs of what is left come to at most `to_bytes`, or `limit` are gone. What was
    removed; the blobs are still there.
    """
    connection.execute(select(ageing.c.age).with_for_update())
    held = totals.usage(connection, namespace)
    mean_bytes = max(1.0, held.blob_bytes / max(1, held.entries))
    going = _Going(connection, held.blob_bytes - to_bytes, limit, mean_bytes)
    going.take(lapsed(namespace, now), "expired", now)
    if judge is None:
        lapsed_count = len(going.gone)
        going.take(order(namespace), "evicted", now)
        _age(connection, going.gone[lapsed_count:])
    else:
        for part in unjudged(namespace):
            going.take(part, "evicted", now)
        going.take_judged(namespace, judge, now)
    totals.account(connection, before=going.gone, after=[])
    return going.gone


def order(namespace: str | None) -> Select[Any]:
    """What goes, the next first."""
    assert Status.QUARANTINED.value < Status.READY.value  # the index sorts them so
    unpinned = _of(namespace).where(entries.c.pinned == false())
    return unpinned.order_by(entries.c.status, entries.c.score)


def unjudged(namespace: str | None) -> Iterator[Select[Any]]:
    """What goes unjudged: of `order` what is barred, then what is only passing by. The database is
    told, which else would lock the lowest of the others. In two parts, as PostgreSQL goes through
    the whole index for one bound on both columns.
    """
    yield order(namespace).where(entries.c.status < Status.READY.value)
    yield order(namespace).where(entries.c.status == Status.READY.value, entries.c.score < 0.0)


def lapsed(namespace: str | None, now: float) -> Select[Any]:
    """What has expired by `now`, the longest expired first."""
    expired = _of(namespace).where(entries.c.expires_at <= now)
    # COALESCE keeps planners from the index of all that is not pinned.
    unpinned = func.coalesce(entries.c.pinned, false()) == false()
    return expired.where(unpinned).order_by(entries.c.expires_at)


def _of(namespace: str | None) -> Select[Any]:
    statement = select(*HOLDING)
    return statement if namespace is None else statement.where(entries.c.namespace == namespace)


class _Going:
    """What one call removes.

    Args:
        connection: in a transaction.
        excess: bytes to remove.
        limit: entries at most.
        mean_bytes: of an entry, about.
    """

    def __init__(self, connection: Connection, excess: int, limit: int, mean_bytes: float) -> None:
        self.gone: list[Holding] = []
        self._connection = connection
        self._excess = excess
        self._limit = limit
        self._mean_bytes = mean_bytes

    def take(self, entries_in_order: Select[Any], reason: str, now: float) -> None:
        """Remove entries in this order until enough are gone, or there are no more such."""
        while (count := self._wanted) > 0:
            page = entries_in_order.limit(count).with_for_update(skip_locked=True)
            rows = self._connection.execute(page).mappings()
            if not self._remove(map(to_holding, rows), reason, now):
                return

    def take_judged(self, namespace: str | None, judge: Judge, now: float) -> None:
        """Remove the lowest of samples until enough are gone, or nothing more can be."""
        while (count := self._wanted) > 0:
            drawn = sample(self._connection, namespace, sampled(count))
            if not self._remove(self._lowest(drawn, judge(drawn, now), count), "evicted", now):
                return

    def _lowest(
        self, drawn: Sequence[Candidate], ranks: Sequence[float], count: int
    ) -> list[Holding]:
        """The lowest `count` of a sample, or as many as are to go, the lowest first, less what was
        used since. What stays is not locked.
        """
        places = list(self._until_enough(lowest(drawn, ranks, count), drawn))
        judged = {drawn[place].key.digest: place for place in places}
        chosen = _JUDGED.where(entries.c.digest.in_(list(judged)))
        found = self._connection.execute(chosen.with_for_update(skip_locked=True)).mappings()
        rows = {judged[bytes(row["digest"])]: row for row in found}
        return [
            to_holding(rows[place])
            for place in places
            if place in rows and moment(rows[place]["used_at"]) == drawn[place].used_at
        ]

    def _until_enough(self, places: Sequence[int], drawn: Sequence[Candidate]) -> Iterator[int]:
        excess = self._excess
        for place in places:
            if excess <= 0:
                return
            yield place
            excess -= drawn[place].blob_bytes

    @property
    def _wanted(self) -> int:
        """How many more are to go, about; at most a page."""
        if self._excess <= 0:
            return 0
        count = math.ceil(self._excess / self._mean_bytes)
        return min(self._limit - len(self.gone), _PAGE, count)

    def _remove(self, page: Iterable[Holding], reason: str, now: float) -> bool:
        """Remove those of `page` that are too many; ``False``: there were none."""
        going = list(_until(self._excess, page))
        if going:
            _remove(self._connection, going, reason, now)
            self.gone += going
            self._excess -= sum(entry.blob_bytes for entry in going)
        return bool(going)


def _until(excess: int, page: Iterable[Holding]) -> Iterator[Holding]:
    """Entries of `page` while there are too many bytes."""
    for entry in page:
        if excess <= 0:
            return
        yield entry
        excess -= entry.blob_bytes


def _remove(connection: Connection, going: Sequence[Holding], reason: str, now: float) -> None:
    digests = [entry.key.digest for entry in going]
    connection.execute(delete(entries).where(entries.c.digest.in_(digests)))
    remember(connection, [Departed(entry.key, reason, now) for entry in going])


def _age(connection: Connection, gone: Sequence[Holding]) -> None:
    """What was quarantined says nothing of what the others are worth."""
    scores = [entry.score for entry in gone if entry.status == Status.READY.value]
    if scores:
        highest = max(scores)
        connection.execute(update(ageing).where(ageing.c.age < highest).values(age=highest))
