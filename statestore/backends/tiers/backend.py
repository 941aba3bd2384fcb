"""Several places as one, nearest first. The last one, the home, is meant to hold everything.

* **Find** goes from near to far and asks each tier only for keys deeper than the best so far. A
  tier that fails is passed over; only if all fail does the lookup. The entry names its `tier`, and
  `read` goes there.
* **Publish** goes to the nearest tier at once and to the others in the background (`copies`); a
  durable put goes to the home as well before it returns.
* **Touch** notes a hit in the tier that had it, and later in those further away. A hit is copied to
  the nearer tiers.
* **Update and delete** go to every tier, once what waits is written. Listings, totals, removals and
  leases are the home's, after a flush. Nearer tiers of other processes keep their copies until they
  evict them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Final

from statestore.backends.base import Backend, Blob, Buffer, Follower, Swept, read_followed
from statestore.backends.fields import check_entry
from statestore.backends.headroom import has_headroom
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups
from statestore.backends.sightings import Sightings, sightings_of
from statestore.backends.tiers.copies import Copies, copy_of
from statestore.backends.tiers.lookups import TieredLookups
from statestore.backends.tiers.tier import Failures, Tier
from statestore.backends.tiers.write_behind import Bounds, WriteBehind
from statestore.entry import Change, Departed, Entry, EntryFilter, Evicted, Usage
from statestore.errors import BackendError, ClosedError, FullError, InputError
from statestore.eviction.policy import Judge
from statestore.keys import StateKey
from statestore.metrics import Metrics

FLUSH_S: Final = 10.0  # as long as an operator's command waits for what is not written yet

__all__ = ["FLUSH_S", "Tier", "Tiered"]


class Tiered:
    """A `Backend` over `tiers`, nearest first; it closes them.

    Args:
        tiers: at least one.
        bounds: how much may wait to be written.
        metrics: counts hits by tier, and the work behind.
    """

    def __init__(
        self, tiers: Sequence[Tier], *, bounds: Bounds | None = None, metrics: Metrics | None = None
    ) -> None:
        self._tiers = tuple(tiers)
        self._nearest, self._home = self._tiers[0], self._tiers[-1]
        self._places = {tier.name: place for place, tier in enumerate(self._tiers)}
        self._metrics = metrics or Metrics()
        self._queue = WriteBehind(bounds, self._metrics)
        self._failures = Failures(self._metrics)
        self._copies = Copies(self._tiers, self._queue, self._failures)
        self._closed = False

    @property
    def url(self) -> str:
        """The URL that opens this place again, without secrets."""
        return " ".join(tier.backend.url for tier in self._tiers)

    @property
    def home(self) -> Backend:
        """The last tier, for callers who must not be given a copy that others have deleted."""
        return self._home.backend

    @property
    def places(self) -> Sequence[Backend]:
        """The tiers, nearest first, for what concerns the copy in each by itself."""
        return [tier.backend for tier in self._tiers]

    @property
    def leases(self) -> Leases | None:
        """The home's: all who share states share it."""
        return self._home.backend.leases

    @property
    def sightings(self) -> Sightings | None:
        """The last tier's that keeps such an index."""
        kept = (sightings_of(tier.backend) for tier in reversed(self._tiers))
        return next((index for index in kept if index is not None), None)

    @property
    def lookups(self) -> Lookups | None:
        """The tallies of all tiers."""
        return TieredLookups([(tier.name, tier.backend) for tier in self._tiers])

    def has_headroom(self, namespace: str) -> bool:
        """Whether the home has room to spare."""
        return has_headroom(self._home.backend, namespace)

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is stored in any tier, ready and not expired at `now`."""
        best: Entry | None = None
        failures: list[BackendError] = []
        for tier in self._tiers:
            if not keys:
                break
            try:
                found = tier.backend.longest(keys, now)
            except BackendError as error:
                failures.append(self._failures.add(tier, "find", error))
                continue
            if found is not None:
                best = replace(found, tier=tier.name)
                keys = keys[: keys.index(found.key)]
        if best is None and len(failures) == len(self._tiers):
            raise failures[0]
        if best is not None:
            self._metrics.tier_hits.labels(tier=best.tier).inc()
        return best

    def read(self, entry: Entry) -> memoryview | None:
        """The blob of `entry` in the tier that had it, or wherever it is; ``None``: it has gone."""
        return self._read_by(lambda backend: backend.read(entry), entry)

    def read_followed(self, entry: Entry, follower: Follower) -> memoryview | None:
        """As `read` and `Arriving` say."""
        return self._read_by(lambda backend: read_followed(backend, entry, follower), entry)

    def _read_by(
        self, read: Callable[[Backend], memoryview | None], entry: Entry
    ) -> memoryview | None:
        place = self._places.get(entry.tier)
        if place is None:
            return self._read_anywhere(entry)
        blob = read(self._tiers[place].backend)
        if blob is None or place == 0:
            return blob
        blob = blob.toreadonly()
        self._copies.keep(entry, blob)
        return blob

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """Store entry and blob in the nearest tier at once, and at home soon; with `durable` at
        home at once, too.

        ``False``: a usable entry was there first; with `durable`, at home.

        Raises:
            FullError: neither the nearest tier nor the queue takes it.
            InputError: the blob's size is not the entry's, or a field cannot be kept.
        """
        self._require_open()
        check_entry(entry)
        size = sum(memoryview(buffer).nbytes for buffer in blob)
        if size != entry.blob_bytes:
            raise InputError(
                f"entry {entry.key} says blob_bytes={entry.blob_bytes}, but the blob has {size}"
            )
        near = copy_of(entry) if self._nearest is not self._home else entry
        published = self._publish_nearest(near, blob)
        further = self._tiers[1:-1] if durable else self._tiers[1:]
        if further:
            whole = self._lasting(near, blob, published)
            queued = self._copies.further(entry, further, whole)
        if durable:
            return self._home.backend.publish(entry, blob, durable=True)
        if published is None and not (further and queued):
            raise FullError(f"{entry.key}: no tier takes it, and too many puts wait already")
        return published is not False

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,
        *,
        memo: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Count a hit where it was, later further away; copy it nearer. All but the first may fail.

        Raises `BackendError` where the tier that had it fails.
        """
        self._require_open()
        place = self._places.get(entry.tier, 0)
        for tier in self._tiers[place + 1 :]:
            work = partial(tier.backend.touch, entry, now, score, memo=memo, expires_at=expires_at)
            self._queue.note(
                (tier.name, entry.key), partial(self._failures.survives, tier, "touch", work)
            )
        if place:
            self._copies.nearer(entry, place, now)
        nearest = self._tiers[place].backend
        nearest.touch(entry, now, score, memo=memo, expires_at=expires_at)

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """Make the change in every tier; with `blob` in the one whose copy that is.

        ``False``: no tier has such an entry.
        """

        def work(backend: Backend) -> bool:
            return backend.update(key, change, blob=blob)

        return self._everywhere(key, "update", work, blob)

    def delete(self, key: StateKey, reason: str, *, blob: str | None = None) -> bool:
        """Remove the entry from every tier; with `blob` from the one whose copy that is."""
        return self._everywhere(
            key, "delete", lambda backend: backend.delete(key, reason, blob=blob), blob
        )

    def entries(self, where: EntryFilter) -> Iterator[Entry]:
        """The home's matching entries, newest use first."""
        home = self._settled()
        return (replace(entry, tier=home.name) for entry in home.backend.entries(where))

    def departed(self, keys: Iterable[StateKey]) -> dict[StateKey, Departed]:
        """What the home remembers of keys that were removed."""
        return self._settled().backend.departed(keys)

    def usage(self, namespace: str | None = None) -> Usage:
        """The home's totals."""
        return self._settled().backend.usage(namespace)

    def evict(
        self,
        to_bytes: int,
        now: float,
        *,
        namespace: str | None = None,
        limit: int = 256,
        judge: Judge | None = None,
    ) -> Evicted:
        """Make room at home; nearer tiers have budgets of their own."""
        home = self._settled()
        return home.backend.evict(to_bytes, now, namespace=namespace, limit=limit, judge=judge)

    def sweep(self, now: float, grace_s: float) -> Swept:
        """Remove what has expired, and orphans, from every tier. Returns what went from the
        home.
        """
        home = self._settled()
        for tier in self._tiers[:-1]:
            self._failures.survives(tier, "sweep", partial(tier.backend.sweep, now, grace_s))
        return home.backend.sweep(now, grace_s)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return once all handed over so far is in every tier; ``False``: `timeout_s` passed."""
        return self._queue.flush(timeout_s)

    def close(self) -> None:
        """Flush, and close every tier; a second call does nothing."""
        self._closed = True
        with ExitStack() as all_the_same:  # one that fails keeps no other open
            for tier in reversed(self._tiers):
                all_the_same.callback(tier.backend.close)
            all_the_same.callback(self._queue.close)

    # Near and far

    def _publish_nearest(self, entry: Entry, blob: Blob) -> bool | None:
        """Whether it was published; ``None``: the tier failed."""
        try:
            return self._nearest.backend.publish(entry, blob)
        except BackendError as error:
            self._failures.add(self._nearest, "put", error)
            return None

    def _lasting(self, near: Entry, blob: Blob, published: bool | None) -> Buffer:
        """The blob in memory that does not change once the caller has its buffers back."""
        if published and self._nearest.lasting_reads:
            with suppress(BackendError):
                kept = self._nearest.backend.read(near)
                if kept is not None:
                    return kept
        return b"".join(blob)

    def _read_anywhere(self, entry: Entry) -> memoryview | None:
        """For entries that were not looked up here: that very copy, wherever it is or soon will
        be.
        """
        self._settled()
        failures: list[BackendError] = []
        for tier in self._tiers:
            try:
                blob = tier.backend.read(entry)
            except BackendError as error:
                failures.append(self._failures.add(tier, "read", error))
                continue
            if blob is not None:
                return blob
        if failures:
            raise failures[0]
        return None

    def _everywhere(
        self, key: StateKey, operation: str, change: Callable[[Backend], bool], blob: str | None
    ) -> bool:
        """Apply a change to every tier, the home first; or to the one that has `blob`."""
        self._require_open()
        self._copies.cancel_nearer(key)
        if blob is None:
            self.flush(FLUSH_S)
        changed = False
        failures: list[BackendError] = []
        for tier in self._tiers if blob is not None else reversed(self._tiers):
            try:
                changed |= change(tier.backend)
            except BackendError as error:
                failures.append(self._failures.add(tier, operation, error))
            if changed and blob is not None:
                return True
        if failures and (blob is None or not changed):
            raise failures[0]
        return changed

    def _settled(self) -> Tier:
        """The home, once what waited has been written to it."""
        self._require_open()
        self.flush(FLUSH_S)
        return self._home

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(f"store {self.url} was closed")
