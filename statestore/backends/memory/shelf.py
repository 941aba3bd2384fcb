"""Entries with their blobs in process memory, their totals, and the order in which they go.

Not safe to use from several threads: `memory` holds a lock. An eviction costs what it removes: the
order is a heap in which an entry that changed leaves a stale ticket behind, and stale tickets are
thrown out when they outnumber the others. A namespace gets a heap of its own when one is first
evicted from it alone. What expires has a heap in each namespace, by the same rules.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from statestore.backends.base import Swept
from statestore.entry import Departed, Entry, Evicted, Status, Usage
from statestore.eviction.policy import Judge, lowest, sampled
from statestore.keys import StateKey

DEPARTED: Final = 10_000  # removals that are remembered

_Ticket: TypeAlias = tuple[bool, float, int, bytes]  # ready, score, number, digest


@dataclass(slots=True)
class Kept:
    """An entry and its blob."""

    entry: Entry
    blob: memoryview  # read-only
    ticket: int  # the number of its newest ticket


class Shelf:
    """What one `memory:` store holds."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Kept] = {}
        self._totals: dict[str | None, Usage] = {}  # ``None``: of all
        self._orders: dict[str | None, list[_Ticket]] = {None: []}
        self._lapsing: dict[str, list[tuple[float, bytes]]] = {}  # when, digest; by namespace
        self._departed: dict[bytes, Departed] = {}
        self._age = 0.0
        self._numbers = itertools.count()
        self._dice = random.Random()  # noqa: S311 - not a secret

    def get(self, key: StateKey) -> Kept | None:
        """What is kept under `key`."""
        kept = self._kept.get(key.digest)
        return kept if kept is not None and kept.entry.key == key else None

    def usable(self, key: StateKey, now: float) -> Entry | None:
        """The entry of `key`, if it is ready and not expired at `now`."""
        kept = self._kept.get(key.digest)
        if kept is None or not _usable(kept.entry, now) or kept.entry.key != key:
            return None
        return kept.entry

    def add(self, entry: Entry, blob: memoryview) -> bool:
        """Keep an entry; ``False``: a usable one of its digest was there first."""
        before = self._kept.get(entry.key.digest)
        if before is not None and _usable(before.entry, entry.created_at):
            return False
        if before is not None:
            self._take(before.entry)
        self._departed.pop(entry.key.digest, None)
        self._kept[entry.key.digest] = Kept(entry, blob, -1)
        self._account(entry, 1)
        self._order(entry)
        return True

    def change(self, key: StateKey, fields: dict[str, Any], blob: str | None = None) -> bool:
        """Replace fields of an entry, with `blob` only if it names that one."""
        kept = self.get(key)
        if kept is None or blob not in (None, kept.entry.blob):
            return False
        self._account(kept.entry, -1)
        kept.entry = replace(kept.entry, **fields)
        self._account(kept.entry, 1)
        self._order(kept.entry)
        return True

    def remove(self, key: StateKey, reason: str, at: float, blob: str | None = None) -> bool:
        """Remove an entry and remember it, with `blob` only if it names that one."""
        kept = self.get(key)
        if kept is None or blob not in (None, kept.entry.blob):
            return False
        self._take(kept.entry)
        self._remember(Departed(key, reason, at))
        return True

    def expire(self, now: float) -> Swept:
        """Remove what has expired."""
        gone = [kept.entry for kept in self._kept.values() if _expired(kept.entry, now)]
        for entry in gone:
            self.remove(entry.key, "expired", now)
        return Swept(len(gone), sum(entry.blob_bytes for entry in gone), len(gone))

    def evict(
        self,
        to_bytes: int,
        now: float,
        namespace: str | None = None,
        limit: int | None = None,
        judge: Judge | None = None,
    ) -> Evicted:
        """Remove unpinned entries, those that have expired first, until `to_bytes` are left, or
        `limit` are gone. With `judge`: see `Backend.evict`.
        """
        if namespace not in self._orders and namespace in self._totals:
            self._orders[namespace] = self._tickets(namespace)
        count = freed = tokens = 0
        going = self._going(to_bytes, now, namespace, judge)
        while count != limit and self.usage(namespace).blob_bytes > to_bytes:
            entry, reason = next(going, (None, ""))
            if entry is None:
                break
            self.remove(entry.key, reason, now)
            count += 1
            freed += entry.blob_bytes
            tokens += entry.key.n_tokens
        return Evicted(count, freed, tokens)

    def _going(
        self, to_bytes: int, now: float, namespace: str | None, judge: Judge | None
    ) -> Iterator[tuple[Entry, str]]:
        """What goes, the next first, and why; each is gone before the next is asked for."""
        while (entry := self._lapsed(namespace, now)) is not None:
            yield entry, "expired"
        while judge is not None:
            if (entry := self._lowest(namespace, below=0.0)) is not None:
                yield entry, "evicted"
            elif drawn := self._drawn(namespace, to_bytes, now, judge):
                yield from ((entry, "evicted") for entry in drawn)
            else:
                return
        while (entry := self._lowest(namespace)) is not None:
            if entry.status is Status.READY:
                self._age = max(self._age, entry.score)
            yield entry, "evicted"

    def _drawn(self, namespace: str | None, to_bytes: int, now: float, judge: Judge) -> list[Entry]:
        """The lowest of a sample, as many as have to go; the lowest first."""
        held = self.usage(namespace)
        excess = (held.blob_bytes - to_bytes) * held.entries / max(held.blob_bytes, 1)
        wanted = max(1, math.ceil(excess))
        drawn = self._sample(namespace, sampled(wanted))
        ranks = judge(drawn, now)
        return [drawn[place] for place in lowest(drawn, ranks, wanted)]

    def _sample(self, namespace: str | None, count: int) -> list[Entry]:
        """So many unpinned entries at random: of the tickets, those that are not stale."""
        order = self._orders.get(namespace, [])
        few = len(order) <= 8 * count  # at most four of five are stale
        tickets = order if few else self._dice.choices(order, k=8 * count)
        found: dict[bytes, Entry] = {}
        for *_, number, digest in tickets:
            kept = self._kept.get(digest)
            if kept is not None and kept.ticket == number:
                found[digest] = kept.entry
        drawn = list(found.values())
        return drawn if len(drawn) <= count else self._dice.sample(drawn, count)

    def entries(self) -> list[Entry]:
        """All entries, in no order."""
        return [kept.entry for kept in self._kept.values()]

    def departed(self, key: StateKey) -> Departed | None:
        """What is remembered of `key`."""
        gone = self._departed.get(key.digest)
        return gone if gone is not None and gone.key == key else None

    def usage(self, namespace: str | None = None) -> Usage:
        """Totals of all entries, or of a namespace's."""
        known = self._totals.get(namespace)
        return replace(known, age=self._age) if known else Usage(0, 0, 0, 0, 0, self._age)

    def _take(self, entry: Entry) -> None:
        del self._kept[entry.key.digest]
        self._account(entry, -1)

    def _remember(self, gone: Departed) -> None:
        self._departed.pop(gone.key.digest, None)  # the newest last
        self._departed[gone.key.digest] = gone
        if len(self._departed) > DEPARTED:
            del self._departed[next(iter(self._departed))]

    def _account(self, entry: Entry, sign: int) -> None:
        for name in (None, entry.namespace):
            old = self._totals.get(name) or Usage(0, 0, 0, 0, 0)
            new = Usage(
                old.entries + sign,
                old.blob_bytes + sign * entry.blob_bytes,
                old.state_bytes + sign * entry.state_bytes,
                old.quarantined + sign * (entry.status is Status.QUARANTINED),
                old.pinned + sign * entry.pinned,
                pinned_bytes=old.pinned_bytes + sign * entry.pinned * entry.blob_bytes,
            )
            if new.entries:
                self._totals[name] = new
            else:
                self._totals.pop(name, None)
                self._orders.pop(name, None)
                self._lapsing.pop(name or "", None)
        self._orders.setdefault(None, [])

    def _order(self, entry: Entry) -> None:
        """Give an entry its new place in the order."""
        kept = self._kept[entry.key.digest]
        kept.ticket = next(self._numbers)
        if entry.pinned:
            return
        for name in (None, entry.namespace):
            order = self._orders.get(name)
            if order is not None:
                heapq.heappush(order, _ticket(kept))
                if len(order) > self._most:
                    self._orders[name] = self._tickets(name)
        if entry.expires_at is not None:
            lapsing = self._lapsing.setdefault(entry.namespace, [])
            heapq.heappush(lapsing, (entry.expires_at, entry.key.digest))
            if len(lapsing) > self._most:
                lapsing[:] = self._expiries(entry.namespace)

    @property
    def _most(self) -> int:
        """Tickets in one heap, stale ones included."""
        return 64 + 4 * len(self._kept)

    def _expiries(self, namespace: str) -> list[tuple[float, bytes]]:
        known = (kept.entry for kept in self._kept.values() if kept.entry.namespace == namespace)
        return sorted((e.expires_at, e.key.digest) for e in known if e.expires_at is not None)

    def _tickets(self, namespace: str | None) -> list[_Ticket]:
        order = [
            _ticket(kept)
            for kept in self._kept.values()
            if namespace in (None, kept.entry.namespace) and not kept.entry.pinned
        ]
        heapq.heapify(order)
        return order

    def _lapsed(self, namespace: str | None, now: float) -> Entry | None:
        """An unpinned entry that has expired; its ticket is used up."""
        for name in list(self._lapsing) if namespace is None else [namespace]:
            lapsing = self._lapsing.get(name, [])
            while lapsing and lapsing[0][0] <= now:
                at, digest = heapq.heappop(lapsing)
                kept = self._kept.get(digest)
                if kept is None or kept.entry.pinned or kept.entry.namespace != name:
                    continue
                if kept.entry.expires_at == at:
                    return kept.entry
        return None

    def _lowest(self, namespace: str | None, below: float = math.inf) -> Entry | None:
        """The entry that goes first; its ticket is used up. Of those that are ready, only one that
        is scored `below` that.
        """
        order = self._orders.get(namespace, [])
        while order:
            ready, score, number, digest = order[0]
            kept = self._kept.get(digest)
            sound = kept is not None and kept.ticket == number
            if sound and ready and score >= below:
                return None
            heapq.heappop(order)
            if kept is not None and sound:
                return kept.entry
        return None


def _ticket(kept: Kept) -> _Ticket:
    entry = kept.entry
    return (entry.status is Status.READY, entry.score, kept.ticket, entry.key.digest)


def _expired(entry: Entry, now: float) -> bool:
    return entry.expires_at is not None and entry.expires_at <= now


def _usable(entry: Entry, now: float) -> bool:
    return entry.status is Status.READY and not _expired(entry, now)
