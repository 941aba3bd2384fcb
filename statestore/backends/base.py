"""The port behind which states are kept. All that a place must be able to do.

**Thread safety.** Every method may be called from several threads at once, and the same place may
be open in other processes and on other hosts.

**Buffers.** `publish` reads the blob's buffers before it returns and keeps none. The buffer that
`read` returns belongs to the caller and stays valid after later calls, deletes and `close`.

**Errors.** A miss is ``None`` or ``False``. A place that cannot answer raises `UnavailableError`,
one without space `FullError`, a closed one `ClosedError`; driver exceptions never pass. Bytes are
not looked into here: whether a blob is sound is the store's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from statestore.backends.leases import Leases
from statestore.entry import Change, Departed, Entry, EntryFilter, Evicted, Usage
from statestore.eviction.policy import Judge
from statestore.keys import StateKey

Buffer: TypeAlias = bytes | bytearray | memoryview
Blob: TypeAlias = Sequence[Buffer]  # written one after the other; saves joining large frames


@dataclass(frozen=True, slots=True)
class Swept:
    """What `Backend.sweep` removed."""

    blobs: int
    blob_bytes: int
    expired: int


class Backend(Protocol):
    """Keeps entries and blobs. Module docstring: thread safety, buffers, errors."""

    @property
    def url(self) -> str:
        """The URL that opens this place again, without secrets."""

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is stored, ready and not expired at `now`; one query.

        Keys come deepest first.
        """

    def read(self, entry: Entry) -> memoryview | None:
        """The whole blob of `entry`; ``None`` where it has gone.

        Raises `CorruptError` where this one blob cannot be read back, and others may be.
        """

    @property
    def leases(self) -> Leases | None:
        """The rights to compute a key that are given out here; ``None``: this place gives none."""

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """Store entry and blob, whole or not at all.

        With `durable`, a place that would finish behind the caller's back does so before it
        returns; the others always do. ``False``: a ready entry with this key was there first and
        stays. A quarantined or expired one is replaced.
        """

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,
        *,
        memo: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Count a hit of `entry`'s key: hits + 1, used_at, score. One that has gone is no error.

        `memo` and `expires_at` (``inf``: never) are set where they are given.
        """

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """Make the change.

        With `blob`, only if the entry still names that blob. ``False``: no such entry.
        """

    def delete(self, key: StateKey, reason: str, *, blob: str | None = None) -> bool:
        """Remove the entry, then its blob. ``False``: no such entry.

        With `blob`, only if the entry still names it.
        """

    def entries(self, where: EntryFilter) -> Iterator[Entry]:
        """Matching entries, newest use first, read in pages: others may write meanwhile."""

    def departed(self, keys: Iterable[StateKey]) -> dict[StateKey, Departed]:
        """What is remembered of keys that were removed."""

    def usage(self, namespace: str | None = None) -> Usage:
        """Totals over all entries, or over a namespace's; a few rows, however many states."""

    def evict(
        self,
        to_bytes: int,
        now: float,
        *,
        namespace: str | None = None,
        limit: int = 256,
        judge: Judge | None = None,
    ) -> Evicted:
        """Remove unpinned entries (of `namespace`), lowest score first, until their blobs come to
        at most `to_bytes`, or `limit` are gone.

        With `judge`, what it ranks lowest of some (`eviction.policy.sampled`) that are drawn at
        random goes instead: after what has expired, what is quarantined and what is scored below 0,
        and unless it is used meanwhile. `judge` is asked inside a transaction or under a lock. The
        age stays as it is.

        Costs what it removes. Several calls at once remove no more than one alone would. What is
        quarantined goes before anything else. A blob that a reader has begun to read stays
        readable to it.
        """

    def sweep(self, now: float, grace_s: float) -> Swept:
        """Remove expired entries and orphans: blobs older than `grace_s` that no entry names."""

    def close(self) -> None:
        """Release connections; a second call does nothing."""


@runtime_checkable
class Deferring(Protocol):
    """A `Backend` that finishes some work behind its caller's back."""

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return once all that was handed over so far is done; ``False``: `timeout_s` passed."""


class Follower(Protocol):
    """Told of a blob on its way, on the thread that reads it. What it raises ends the read."""

    def begin(self, buffer: memoryview) -> None:
        """A try begins, perhaps not the first: what comes is put into `buffer`, from its start.

        Whatever it knew of an earlier try holds no more.
        """

    def came(self, count: int) -> None:
        """So many first bytes of the buffer have come, and stay as they are in this try."""

    def spare(self) -> bool:
        """Nothing is there to receive just now: do a piece of work of a millisecond or less.

        ``False``: there is none.
        """


class Arriving(Protocol):
    """A `Backend` that has a blob bit by bit. Wrappers that change no byte of it pass this on."""

    def read_followed(self, entry: Entry, follower: Follower) -> memoryview | None:
        """`Backend.read`. `follower` may be told of it; then the blob is the front of the last
        try's buffer.
        """


_Read: TypeAlias = Callable[[Entry, Follower], memoryview | None]


def read_followed(backend: Backend, entry: Entry, follower: Follower) -> memoryview | None:
    """The blob of `entry`; `follower` is told how far it has come where the place is `Arriving`."""
    # Not `isinstance`: for a protocol that takes 20 microseconds, at every fetch.
    read: _Read | None = getattr(backend, "read_followed", None)
    return backend.read(entry) if read is None else read(entry, follower)


class NotAtHandError(Exception):
    """There is no open connection to a place: ask the usual way."""


@runtime_checkable
class Punctual(Protocol):
    """A `Backend` that can answer in time by itself, over a connection that is open already.

    Both are as the port says, and raise `UnavailableError` when `limit_s` has passed,
    `NotAtHandError` at once where there is no such connection.
    """

    def longest_within(self, keys: Sequence[StateKey], now: float, limit_s: float) -> Entry | None:
        """`Backend.longest`, in time."""

    def read_within(
        self, entry: Entry, limit_s: float, follower: Follower | None = None
    ) -> memoryview | None:
        """`Backend.read`, in time; `follower` may be told of it, as by `Arriving`."""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A blob that no entry names."""

    blob: str
    blob_bytes: int
    modified_at: float  # seconds since the epoch


@runtime_checkable
class Mendable(Protocol):
    """A `Backend` whose entries and totals can be made anew from what lies there."""

    def orphans(self, before: float) -> Iterator[Orphan]:
        """Blobs last written at `before` or earlier that no entry names."""

    def adopt(self, entry: Entry) -> bool:
        """Keep an entry whose blob is there. ``False``: a usable one of its key is, or it was
        removed and is remembered as such.
        """

    def recount(self, *, mend: bool) -> bool:
        """Whether the totals were those of the entries; with `mend`, they are afterwards."""

    def hidden(self, *, mend: bool) -> int:
        """How many entries are there and no lookup finds them; with `mend`, it does afterwards."""
