"""A backend of two parts: a SQL catalog of entries, and a blob store.

Order of writes: the blob is durable before its entry is committed; an entry is gone, and that
committed, before its blob is unlinked; and exactly the blob that the entry named is unlinked. So a
crash at any instruction leaves at most a blob that no entry names, which `sweep` removes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Final, TypeVar

from sqlalchemy import Connection

from statestore.backends.base import Blob, Follower, NotAtHandError, Orphan, Swept
from statestore.backends.bell import Line
from statestore.backends.fields import check_text, touched
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups
from statestore.backends.sightings import Sightings
from statestore.backends.sql import catalog, departures, search, tallies, totals
from statestore.backends.sql.admitting import admit_new
from statestore.backends.sql.cached import CachedBlobs
from statestore.backends.sql.database import Database
from statestore.backends.sql.evicting import evict
from statestore.backends.sql.leases import SqlLeases
from statestore.backends.sql.lookup_filter import LookupFilter
from statestore.backends.sql.lookups import SqlLookups
from statestore.backends.sql.recounting import agree, recount
from statestore.backends.sql.reserve import Reserve
from statestore.backends.sql.rows import Holding, has_labels, to_columns
from statestore.backends.sql.sightings import SqlSightings
from statestore.backends.sql.unlinking import Unlinker
from statestore.backends.tallies import Tally
from statestore.blobs.base import BlobStore
from statestore.entry import Change, Departed, Entry, EntryFilter, Evicted, Status, Usage
from statestore.errors import BackendError, InputError
from statestore.eviction.policy import Judge
from statestore.keys import StateKey

T = TypeVar("T")

log = logging.getLogger(__name__)

_PAGE: Final = 256  # rows of one read
_FEW: Final = 8  # that go before their blobs do, where a full disk has room for no more

# For writes that come with a lookup and are not what it was asked for: a request never waits long
# for another process that holds the catalog's write lock. Less than a guard's usual deadline, so
# that it can tell a busy place from a silent one.
_ASIDE_S: Final = 0.2


class SqlBackend:
    """A `Backend` over a catalog whose tables are at head, and a blob store.

    Args:
        database: the catalog; the backend closes it.
        blobs: where the blobs lie.
        url: opens this place again, without secrets.
        clock: seconds since the epoch; dates what is removed.
        listen: opens a line on which the database tells of leases; ``None``: it tells nobody.
        lookup_filter: of this catalog; the backend closes it.
        reserve: space for removals from a full disk; ``None``: the catalog has a disk of its own.
        cached: those of `blobs` that are in memory; ``None``: nobody asks for them in time.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        url: str,
        *,
        clock: Callable[[], float] = time.time,
        listen: Callable[[], Line] | None = None,
        lookup_filter: LookupFilter | None = None,
        reserve: Reserve | None = None,
        cached: CachedBlobs | None = None,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._unlink = Unlinker(blobs)
        self._url = url
        self._clock = clock
        self._filter = lookup_filter
        self._reserve = reserve
        self._cached = cached
        self._leases = SqlLeases(database, listen)
        self._sightings = SqlSightings(database)
        self._lookups = SqlLookups(database)

    @property
    def url(self) -> str:
        """The URL that opens this place again."""
        return self._url

    @property
    def leases(self) -> Leases | None:
        """The rights to compute a key that are given out here."""
        return self._leases

    @property
    def sightings(self) -> Sightings | None:
        """The prefixes that were seen lately."""
        return self._sightings

    @property
    def lookups(self) -> Lookups | None:
        """The tally of lookups."""
        return self._lookups

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is stored, ready and not expired at `now`."""
        wanted = keys if self._filter is None else self._filter.passing(keys)
        return search.longest(self._database, wanted, now)

    def longest_within(self, keys: Sequence[StateKey], now: float, limit_s: float) -> Entry | None:
        """As `longest`, in time; see `Punctual`."""
        until = time.monotonic() + limit_s
        wanted = keys if self._filter is None else self._filter.passing(keys)
        return search.longest(self._database, wanted, now, until)

    def read_within(
        self,
        entry: Entry,
        limit_s: float,  # noqa: ARG002
        follower: Follower | None = None,  # noqa: ARG002
    ) -> memoryview | None:
        """As `read`, of what is in memory; a mounted directory, or a disk, keeps no deadline."""
        if self._cached is None:
            raise NotAtHandError
        return self._cached.get(entry.blob, entry.blob_bytes + 1)

    def read(self, entry: Entry) -> memoryview | None:
        """The blob of `entry`, cut one byte beyond its size; ``None`` where it has gone."""
        blob = self._blobs.get(entry.blob, limit_bytes=entry.blob_bytes + 1)
        if blob is not None and self._cached is not None:
            self._cached.look()
        return blob

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """Store entry and blob, whole or not at all. ``False``: a usable entry was there first.

        With `durable` or without, both are there for all when this returns. With it, a server
        has told its disk too (`unsynced`).

        Raises:
            InputError: the blob has not the size that the entry says, or a field cannot be stored.
        """
        size = sum(memoryview(buffer).nbytes for buffer in blob)
        if size != entry.blob_bytes:
            raise InputError(
                f"entry {entry.key} says blob_bytes={entry.blob_bytes}, but the blob has {size}"
            )
        if self._stored(entry):
            if durable:
                self._settle(entry)
            return False
        self._blobs.put(entry.blob, blob)
        try:
            if self._admitted_new(entry, durable=durable):
                return True
            admitted = self._admit(entry, catalog.admit)
        except BaseException:
            self._unlink_unless_named(entry.blob)
            raise
        if not admitted.won:
            self._unlink.one(entry.blob)
        elif admitted.replaced is not None:
            self._unlink.one(admitted.replaced.blob)
        return admitted.won

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,
        *,
        memo: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Count a hit: hits + 1, used_at, score. An entry that has gone is no error."""
        columns = touched(now, score, memo, expires_at)
        self._database.apply(lambda tx: catalog.touch(tx, entry.key, columns), patience_s=_ASIDE_S)

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """Make the change, if the entry is there and (with `blob`) names that blob."""
        columns = to_columns(change)
        patience_s = _ASIDE_S if change.status is Status.QUARANTINED else None
        return self._database.write(
            lambda tx: catalog.change(tx, key, columns, blob), patience_s=patience_s
        )

    def delete(self, key: StateKey, reason: str, *, blob: str | None = None) -> bool:
        """Remove the entry, then its blob. ``False``: no such entry, or it names another blob."""
        why = check_text(reason, "reason")
        gone = self._removing(lambda tx: catalog.remove(tx, key, why, self._clock(), blob))
        if gone is None:
            return False
        self._unlink.one(gone.blob)
        self._keep_reserve()
        return True

    def entries(self, where: EntryFilter) -> Iterator[Entry]:
        """Matching entries, newest use first, in pages; one used meanwhile may be missed."""
        last: catalog.Place | None = None
        while True:
            found, last = self._page(where, last)
            yield from (entry for entry in found if has_labels(entry, where))
            if last is None:
                return

    def departed(self, keys: Iterable[StateKey]) -> dict[StateKey, Departed]:
        """What is remembered of keys that were removed."""
        wanted = list(keys)
        if not wanted:
            return {}
        return self._database.read(lambda tx: departures.remembered(tx, wanted))

    def usage(self, namespace: str | None = None) -> Usage:
        """Totals over all entries, or over a namespace's."""
        return self._database.read(lambda tx: totals.usage(tx, namespace))

    def tallies(self, namespace: str | None = None) -> list[tuple[bytes, Tally]]:
        """Sums by namespace, model and fingerprint, in one query that reads every row."""
        return self._database.read(lambda tx: tallies.tallies(tx, namespace))

    def evict(
        self,
        to_bytes: int,
        now: float,
        *,
        namespace: str | None = None,
        limit: int = 256,
        judge: Judge | None = None,
    ) -> Evicted:
        """Remove unpinned entries, by score or as `judge` ranks, until `to_bytes` are left.

        One transaction, then their blobs; on a full disk several. Evictors on other hosts wait for
        each other.
        """

        def remove(count: int) -> list[Holding]:
            return self._database.write(
                lambda tx: evict(tx, to_bytes, now, namespace, count, judge)
            )

        reserve = self._reserve
        pages = [remove(limit)] if reserve is None else reserve.removing_many(remove, limit)
        gone: list[Holding] = []
        for page in pages:
            self._unlink.all([(victim.blob, victim.blob_bytes) for victim in page])
            gone += page
        self._keep_reserve()
        sizes = sum(victim.blob_bytes for victim in gone)
        return Evicted(len(gone), sizes, sum(victim.key.n_tokens for victim in gone))

    def sweep(self, now: float, grace_s: float) -> Swept:
        """Remove expired entries with their blobs, and blobs older than `grace_s` without an entry.

        `grace_s` is to be longer than the slowest write takes: a blob comes before its entry.
        """
        expired, removed = self._drop_expired(now)
        self._removing(totals.drop_empty)
        self._mend_filter()
        orphans = [(found.blob, found.blob_bytes) for found in self.orphans(now - grace_s)]
        removed += self._unlink.all(orphans)
        self._keep_reserve()
        return Swept(blobs=len(removed), blob_bytes=sum(removed), expired=expired)

    def orphans(self, before: float) -> Iterator[Orphan]:
        """Blobs last written at `before` or earlier that no entry names."""
        old = (info for info in self._blobs.list() if info.modified_at <= before)
        while batch := list(islice(old, _PAGE)):
            kept = self._named([info.name for info in batch])
            yield from (
                Orphan(info.name, info.size_bytes, info.modified_at)
                for info in batch
                if info.name not in kept
            )

    def adopt(self, entry: Entry) -> bool:
        """Keep an entry whose blob is there already; ``False``: its key was removed, or is there.

        Raises `InputError` for a field that cannot be stored.
        """
        admitted = self._admit(entry, catalog.adopt)
        if admitted.replaced is not None:
            self._unlink.one(admitted.replaced.blob)
        return admitted.won

    def recount(self, *, mend: bool) -> bool:
        """Whether the totals were those of the entries; with `mend`, they are afterwards."""
        right = self._database.read(agree)
        if mend and not right:
            self._database.write(recount)
        return right

    def hidden(self, *, mend: bool) -> int:
        """How many entries no lookup finds, for want of their bits in the lookup filter."""
        if self._filter is None:
            return 0
        hidden = self._filter.hidden()
        if hidden and mend:
            self._filter.build()
        return hidden

    def close(self) -> None:
        """Release connections; a second call does nothing."""
        if self._filter is not None:
            self._filter.close()
        self._database.close()
        self._keep_reserve()

    def _removing(self, work: Callable[[Connection], T]) -> T:
        """The result of a transaction that removes something: it finds room on a full disk too."""
        remove = partial(self._database.write, work)
        return remove() if self._reserve is None else self._reserve.removing(remove)

    def _keep_reserve(self) -> None:
        if self._reserve is not None:
            self._reserve.keep()

    def _page(
        self, where: EntryFilter, after: catalog.Place | None
    ) -> tuple[list[Entry], catalog.Place | None]:
        return self._database.read(lambda tx: catalog.page(tx, where, after, _PAGE))

    def _stored(self, entry: Entry) -> bool:
        """Whether a usable entry is there already, so that the blob need not be written."""
        digest = entry.key.digest
        stored = search.longest(self._database, [entry.key], entry.created_at) is not None
        known = self._filter
        if stored and known is not None and known.lacks(digest):
            self._database.write(lambda _: known.note(digest))
        return stored

    def _settle(self, entry: Entry) -> None:
        """Wait for a server's disk to have the entry that is there: whoever put it may not have."""
        if self._database.product == "postgresql":
            self._database.apply(lambda tx: catalog.settle(tx, entry.key))

    def _admitted_new(self, entry: Entry, *, durable: bool) -> bool:
        """Whether a server's catalog took `entry` by the statement for new ones."""
        if self._database.product != "postgresql":
            return False
        return self._database.apply(lambda tx: admit_new(tx, entry, durable=durable))

    def _admit(
        self, entry: Entry, admit: Callable[[Connection, Entry], catalog.Admitted]
    ) -> catalog.Admitted:
        """Insert `entry` in a transaction of its own; the filter knows of it before the commit."""

        def work(connection: Connection) -> catalog.Admitted:
            admitted = admit(connection, entry)
            if self._filter is not None:
                self._filter.note(entry.key.digest)
            return admitted

        admitted = self._database.write(work)
        if self._filter is not None:
            self._filter.tend()
        return admitted

    def _mend_filter(self) -> None:
        if self._filter is not None and not self._filter.mend():
            log.warning("%s: entries were missing from its lookup filter", self._url)

    def _drop_expired(self, now: float) -> tuple[int, list[int]]:
        """Remove expired entries and their blobs: how many, and the sizes of the blobs."""
        size = _PAGE if self._unlink.many else _FEW
        removed: list[int] = []
        count = 0
        while found := self._database.read(lambda tx: catalog.expired(tx, now, size)):
            gone = [entry for entry in found if self._drop(entry, now)]
            removed += self._unlink.all([(entry.blob, entry.blob_bytes) for entry in gone])
            count += len(gone)
        return count, removed

    def _drop(self, entry: Holding, now: float) -> bool:
        return self._removing(lambda tx: catalog.remove_expired(tx, entry, now))

    def _named(self, blobs: list[str]) -> set[str]:
        return self._database.read(lambda tx: catalog.named(tx, blobs))

    def _unlink_unless_named(self, blob: str) -> None:
        """Unlink a blob whose entry failed: unless the failing COMMIT has happened after all."""
        try:
            kept = self._named([blob])
        except BackendError:
            return  # not known: `sweep` will see
        if not kept:
            self._unlink.one(blob)
