"""A backend around another one that passes every call on: the base of those that add one concern.

Budgets, deadlines, tiers' codecs, encryption and injected faults are each a `Wrapper` that changes
the few calls it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from statestore.backends.base import Backend, Blob, Swept
from statestore.backends.headroom import has_headroom
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups, lookups_of
from statestore.backends.sightings import Sightings, sightings_of
from statestore.entry import Change, Departed, Entry, EntryFilter, Evicted, Usage
from statestore.eviction.policy import Judge
from statestore.keys import StateKey


class Wrapper:
    """A `Backend` that is `inner`, but for what a subclass changes."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def url(self) -> str:
        """The URL that opens this place again, without secrets."""
        return self.inner.url

    @property
    def leases(self) -> Leases | None:
        """The leases that the place gives out."""
        return self.inner.leases

    @property
    def sightings(self) -> Sightings | None:
        """The prefixes that the place has seen."""
        return sightings_of(self.inner)

    @property
    def lookups(self) -> Lookups | None:
        """The tally of lookups that the place keeps."""
        return lookups_of(self.inner)

    def has_headroom(self, namespace: str) -> bool:
        """Whether the place has room to spare."""
        return has_headroom(self.inner, namespace)

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """As the port says."""
        return self.inner.longest(keys, now)

    def read(self, entry: Entry) -> memoryview | None:
        """As the port says."""
        return self.inner.read(entry)

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says."""
        return self.inner.publish(entry, blob, durable=durable)

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,
        *,
        memo: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """As the port says."""
        self.inner.touch(entry, now, score, memo=memo, expires_at=expires_at)

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """As the port says."""
        return self.inner.update(key, change, blob=blob)

    def delete(self, key: StateKey, reason: str, *, blob: str | None = None) -> bool:
        """As the port says."""
        return self.inner.delete(key, reason, blob=blob)

    def entries(self, where: EntryFilter) -> Iterator[Entry]:
        """As the port says."""
        return self.inner.entries(where)

    def departed(self, keys: Iterable[StateKey]) -> dict[StateKey, Departed]:
        """As the port says."""
        return self.inner.departed(keys)

    def usage(self, namespace: str | None = None) -> Usage:
        """As the port says."""
        return self.inner.usage(namespace)

    def evict(
        self,
        to_bytes: int,
        now: float,
        *,
        namespace: str | None = None,
        limit: int = 256,
        judge: Judge | None = None,
    ) -> Evicted:
        """As the port says."""
        return self.inner.evict(to_bytes, now, namespace=namespace, limit=limit, judge=judge)

    def sweep(self, now: float, grace_s: float) -> Swept:
        """As the port says."""
        return self.inner.sweep(now, grace_s)

    def close(self) -> None:
        """As the port says."""
        self.inner.close()
