"""States in this process's memory, within a budget of bytes.

    memory:                   a private store, gone when it is closed
    memory://name             one store for all in the process that open it by this name, for as
                              long as anybody has it open
    memory:?budget=512MiB     holds at most so many bytes of blobs; 1 GiB by default

What has the lowest score goes to make room, by default what was used longest ago. Blobs lie in
immutable memory that every reader shares, and are encoded ``raw`` unless the URL says otherwise: a
load is a checksum and no copy.

A forked child begins with an empty store of its own: no lock is inherited half-held, and the pages
of states are not touched.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from statestore.backends.base import Blob, Swept
from statestore.backends.fields import (
    check_entry,
    check_labels,
    check_number,
    check_text,
    hex_prefix,
    matches,
    touched,
)
from statestore.backends.leases import Lease, Leases, Outcome
from statestore.backends.lookups import LocalLookups, Lookups
from statestore.backends.memory.leases import LocalLeases
from statestore.backends.memory.shelf import Shelf
from statestore.backends.sightings import LocalSightings, Sightings
from statestore.entry import Change, Departed, Entry, EntryFilter, Evicted, Usage
from statestore.errors import ClosedError, FullError, InputError
from statestore.eviction.policy import Judge
from statestore.forking import renew_in_child
from statestore.keys import StateKey

BUDGET_BYTES: Final = 1 << 30
ALIGNMENT: Final = 64  # bytes; a container's frames keep their alignment in memory

_PAGE: Final = 256  # entries of a listing that are looked at in one go


class MemoryBackend:
    """A `Backend` in memory that may be shared with others of the process.

    Args:
        name: of a shared store; ``""``: a private one.
        budget_bytes: the most that blobs may take; ``None``: as it is, or 1 GiB. Of a shared store
            the last one given holds.
        clock: seconds since the epoch; dates what is removed.
    """

    def __init__(
        self,
        name: str = "",
        budget_bytes: int | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._clock = clock
        self._room: _Room | None = _rooms.named(name) if name else _Room()
        self._room.budget_bytes = budget_bytes or self._room.budget_bytes

    @property
    def url(self) -> str:
        """The URL that opens this place again, in this process."""
        return f"memory://{self._name}" if self._name else "memory:"

    @property
    def leases(self) -> Leases | None:
        """The rights to compute a key, among the threads of this process."""
        return _Handle(self)

    @property
    def sightings(self) -> Sightings | None:
        """The prefixes that were seen lately, by all who share the store."""
        return self.room().sightings

    @property
    def lookups(self) -> Lookups | None:
        """The tally of all who share the store."""
        return self.room().lookups

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is stored, ready and not expired at `now`."""
        shelf = self.room().shelf  # looking something up in a dict needs no lock
        return next((entry for key in keys if (entry := shelf.usable(key, now))), None)

    def read(self, entry: Entry) -> memoryview | None:
        """The blob of `entry`, read-only and shared; ``None`` where it has gone."""
        kept = self.room().shelf.get(entry.key)
        return kept.blob if kept is not None and kept.entry.blob == entry.blob else None

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:  # noqa: ARG002 - nothing here is
        """Store entry and blob, whole or not at all. ``False``: a usable entry was there first.

        Raises:
            FullError: larger than the budget, or than what pinned states leave of it.
            InputError: the blob has not the size that the entry says, or a field cannot be kept.
        """
        room = self.room()
        check_entry(entry)
        size = sum(memoryview(buffer).nbytes for buffer in blob)
        if size != entry.blob_bytes:
            raise InputError(
                f"entry {entry.key} says blob_bytes={entry.blob_bytes}, but the blob has {size}"
            )
        if entry.expires_at == math.inf:
            entry = replace(entry, expires_at=None)
        if room.shelf.usable(entry.key, entry.created_at):
            return False
        copy = _immutable(blob, size)
        with room.lock:
            room.make_place(entry)
            return room.shelf.add(entry, copy)

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
        given = touched(now, score, memo, expires_at)
        room = self.room()
        with room.lock:
            kept = room.shelf.get(entry.key)
            if kept is not None:
                room.shelf.change(entry.key, {"hits": kept.entry.hits + 1, **given})

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """Make the change, if the entry is there and (with `blob`) names that blob."""
        check_number(change.expires_at, "expires_at")
        check_text(change.reason or "", "reason")
        fields = change.given()
        if change.labels is not None:
            check_labels(change.labels)
            fields["labels"] = dict(change.labels)
        if change.expires_at == math.inf:
            fields["expires_at"] = None
        room = self.room()
        with room.lock:
            return room.shelf.change(key, fields, blob)

    def delete(self, key: StateKey, reason: str, *, blob: str | None = None) -> bool:
        """Remove the entry with its blob. ``False``: no such entry, or it names another blob."""
        check_text(reason, "reason")
        room = self.room()
        with room.lock:
            return room.shelf.remove(key, reason, self._clock(), blob)

    def entries(self, where: EntryFilter) -> Iterator[Entry]:
        """Matching entries, newest use first, as they are when their page is reached."""
        hex_prefix(where)
        room = self.room()
        with room.lock:
            known = room.shelf.entries()
        known = [entry for entry in known if matches(entry, where)]
        known.sort(key=lambda entry: entry.used_at, reverse=True)
        for start in range(0, len(known), _PAGE):
            yield from self._still_there(known[start : start + _PAGE])

    def departed(self, keys: Iterable[StateKey]) -> dict[StateKey, Departed]:
        """What is remembered of keys that were removed."""
        room = self.room()
        with room.lock:
            found = {key: room.shelf.departed(key) for key in keys}
        return {key: gone for key, gone in found.items() if gone is not None}

    def usage(self, namespace: str | None = None) -> Usage:
        """Totals over all entries, or over a namespace's."""
        room = self.room()
        with room.lock:
            return room.shelf.usage(namespace)

    def evict(
        self,
        to_bytes: int,
        now: float,
        *,
        namespace: str | None = None,
        limit: int = 256,
        judge: Judge | None = None,
    ) -> Evicted:
        """Remove unpinned entries, by score or as `judge` ranks, until `to_bytes` are left."""
        room = self.room()
        with room.lock:
            return room.shelf.evict(to_bytes, now, namespace, limit, judge)

    def sweep(self, now: float, grace_s: float) -> Swept:  # noqa: ARG002 - no write leaves anything
        """Remove expired entries; there are no orphans here."""
        room = self.room()
        with room.lock:
            return room.shelf.expire(now)

    def close(self) -> None:
        """Let go of the store; the last one to do so ends it."""
        self._room = None

    def room(self) -> _Room:
        """Where things are; raises `ClosedError` after `close`."""
        room = self._room
        if room is None:
            raise ClosedError(f"store {self.url} was closed")
        return room

    def _still_there(self, page: Sequence[Entry]) -> Iterator[Entry]:
        shelf = self.room().shelf
        kept = (shelf.get(entry.key) for entry in page)
        return (now.entry for now in list(kept) if now is not None)


class _Handle:
    """The leases of a backend, for as long as it is open."""

    def __init__(self, backend: MemoryBackend) -> None:
        self._backend = backend

    def acquire(self, key: StateKey, owner: str, ttl_s: float) -> Lease:
        """As the port says."""
        return self._backend.room().leases.acquire(key, owner, ttl_s)

    def renew(self, key: StateKey, owner: str, ttl_s: float) -> bool:
        """As the port says."""
        return self._backend.room().leases.renew(key, owner, ttl_s)

    def release(self, key: StateKey, owner: str, outcome: Outcome) -> None:
        """As the port says."""
        self._backend.room().leases.release(key, owner, outcome)

    def wait(self, key: StateKey, timeout_s: float) -> Lease | None:
        """As the port says."""
        return self._backend.room().leases.wait(key, timeout_s)


class _Room:
    """What those who share a store share: states, leases, a budget and the lock over them."""

    def __init__(self) -> None:
        self.budget_bytes = BUDGET_BYTES
        self.renew()
        renew_in_child(self)

    def renew(self) -> None:
        """Begin empty."""
        self.lock = threading.RLock()
        self.shelf = Shelf()
        self.leases = LocalLeases()
        self.sightings = LocalSightings()
        self.lookups = LocalLookups()

    def make_place(self, entry: Entry) -> None:
        """Evict until `entry` has a place. Raises `FullError`; under the lock."""
        left = self.budget_bytes - entry.blob_bytes
        if left < 0:
            raise FullError(
                f"{entry.key}: a state of {entry.blob_bytes} bytes is larger than the budget of "
                f"memory, {self.budget_bytes} bytes; raise it"
            )
        usage = self.shelf.usage()
        if usage.pinned_bytes > left:  # then nothing goes for it
            raise FullError(
                f"{entry.key}: no room for {entry.blob_bytes} bytes beside {usage.pinned} pinned "
                f"states in memory's {self.budget_bytes} bytes; unpin some, or raise the budget"
            )
        self.shelf.evict(left, entry.created_at)


class _Rooms:
    """Rooms by name, while anybody holds them."""

    def __init__(self) -> None:
        self.renew()
        renew_in_child(self)
        self._named: weakref.WeakValueDictionary[str, _Room] = weakref.WeakValueDictionary()

    def renew(self) -> None:
        """Make a new lock, as the old one may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def named(self, name: str) -> _Room:
        """The room of this name; a new one where nobody holds it."""
        with self._lock:
            room = self._named.get(name)
            if room is None:
                room = self._named[name] = _Room()
            return room


_rooms = _Rooms()


def _immutable(blob: Blob, size: int) -> memoryview:
    """A read-only copy of the buffers one after the other, aligned."""
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy = memory.data[start : start + size]
    reached = 0
    for buffer in blob:
        view = memoryview(buffer)
        if view.nbytes:
            copy[reached : reached + view.nbytes] = view.cast("B")
            reached += view.nbytes
    return copy.toreadonly()
