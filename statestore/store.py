"""The store: find the longest stored prefix, keep new states, never pass on a wrong one.

What it adds to a bare backend:

* **Sound or nothing.** Every load checks the container, then that it is of the key, fingerprint and
  namespace that its entry says and that were asked for. What fails is quarantined, counted and
  logged, and the next shorter key is tried. A sound state asked for under another identity is
  stepped over and stays: no caller can bar another's.
* **Never in the way.** `find`, `get` and `put` do not raise because the place behind is down,
  slow, full or damaged: that is a miss, or a put that was dropped. Commands of an operator (`list`,
  `delete`, `update`, `usage`, `sweep`) do raise: a person wants to know.

It knows nothing of tokens: keys come from `statestore.keys`. It keeps what it is given; what is
worth keeping is decided above.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from types import TracebackType
from typing import Self

from statestore import codec
from statestore.backends.base import Backend, Deferring, Swept
from statestore.backends.leases import Leases
from statestore.complaints import Complaints
from statestore.entry import Change, Departed, Entry, EntryFilter, Role, Status, Usage
from statestore.errors import (
    BackendError,
    ContainerError,
    InputError,
    LimitError,
    LockedError,
    NotFoundError,
)
from statestore.keys import StateKey
from statestore.metrics import Metrics
from statestore.schema import State

log = logging.getLogger(__name__)

#: How many unsound states one lookup may step over before it counts as a miss.
MAX_STEPS_DOWN = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose states are meant: computed by what, visible to whom."""

    fingerprint: bytes  # digest, 32 bytes
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class Found:
    """A sound state and its entry."""

    entry: Entry
    state: State


class PutOutcome(StrEnum):
    """What became of a put."""

    PUBLISHED = "published"
    PRESENT = "present"  # the same key was stored already; the first writer wins
    DROPPED = "dropped"  # the backend failed; counted and logged


class StateStore:
    """States in one backend. Safe to use from several threads; close it, or use it as a context
    manager.

    Args:
        backend: where entries and blobs live; the store closes it.
        codec_name: how new blobs are encoded, ``"lossless"`` or ``"raw"``; any is read.
        limits: the largest container that is read, and written.
        metrics: instruments to count on; new ones by default.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        codec_name: codec.CodecName = "lossless",
        limits: codec.Limits | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.backend = backend
        self.metrics = metrics or Metrics()
        self._codec_name = codec_name
        self._limits = limits or codec.Limits()
        self._clock = clock
        self._complaints = Complaints(log)

    # Requests: never raise because of the backend.

    def find(
        self, identity: Identity, keys: Sequence[StateKey], *, touch: bool = True
    ) -> Found | None:
        """The state of the first of `keys` (deepest first) that is stored and sound.

        A hit is noted in the entry before this returns; a caller in a hurry says ``touch=False``
        and calls `touch` later.
        """
        with self.metrics.fetch_seconds.time():
            found, outcome = self._find(identity, keys)
        if found is not None and touch:
            self.touch(found.entry)
        self.metrics.lookups.labels(outcome=outcome).inc()
        if found is not None:
            self.metrics.tokens_found.inc(found.entry.key.n_tokens)
        return found

    def get(self, identity: Identity, key: StateKey) -> Found | None:
        """The state stored under exactly `key`, or ``None``."""
        return self.find(identity, [key])

    def touch(self, entry: Entry) -> None:
        """Count a hit of `entry`; one that has gone is left alone."""
        now = self._clock()
        try:
            self.backend.touch(entry, now, now)
        except BackendError as error:
            self._kept("touch", error)

    def put(
        self,
        identity: Identity,
        key: StateKey,
        state: State,
        *,
        token_digest: bytes,
        role: Role,
        cost_s: float = 0.0,
        model: str = "",
        labels: Mapping[str, str] | None = None,
        pinned: bool = False,
        ttl_s: float | None = None,
        ancestor_tokens: int = 0,
        durable: bool = False,
    ) -> PutOutcome:
        """Encode `state` and publish it under `key`, whole or not at all.

        Args:
            identity: what computed the state, and whose it is.
            key: from `statestore.keys`; a key tells which computation the state came from.
            state: the tensors; its buffers are read before this returns.
            token_digest: digest of the plain tokens (32 bytes), for `explain`.
            role: why it is saved.
            cost_s: seconds of computing from the empty state that a hit saves.
            model: a name for people.
            labels: free words for people and filters.
            pinned: never dropped to make room.
            ttl_s: seconds after which it counts as gone.
            ancestor_tokens: length of the nearest state that was stored when this one came.
            durable: return only once the place that others look into has it. Otherwise a store
                of several tiers brings it there behind the caller's back.

        Raises:
            InputError: a field means nothing, or cannot be kept.
        """
        now = self._clock()
        header = codec.Header.of(
            state,
            key=key,
            fingerprint=identity.fingerprint,
            namespace=identity.namespace,
            token_digest=token_digest,
            provenance={
                "role": role.value,
                "model": model,
                "created_at": f"{now:.3f}",
                "cost_s": f"{cost_s:.6g}",
                "ancestor_tokens": str(ancestor_tokens),
            },
        )
        entry = Entry(
            key=key,
            namespace=identity.namespace,
            fingerprint=identity.fingerprint,
            token_digest=token_digest,
            schema_id=state.schema_id,
            role=role,
            blob=f"{key}.{secrets.token_hex(8)}",
            blob_bytes=0,  # known once it is encoded
            state_bytes=state.nbytes,
            has_output=state.output is not None,
            cost_s=cost_s,
            created_at=now,
            used_at=now,
            score=now,
            ancestor_tokens=ancestor_tokens,
            pinned=pinned,
            expires_at=None if ttl_s is None else now + ttl_s,
            model=model,
            labels=dict(labels or {}),
        )
        with self.metrics.put_seconds.time():
            outcome = self._encode_and_publish(entry, header, state, durable=durable)
        self.metrics.puts.labels(outcome=outcome.value).inc()
        return outcome

    @property
    def leases(self) -> Leases | None:
        """The rights to compute a key that this store's place gives out."""
        return self.backend.leases

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until what was put is where others look for it; ``False``: not within `timeout_s`.

        Only a store of several tiers has anything to wait for.
        """
        return self.backend.flush(timeout_s) if isinstance(self.backend, Deferring) else True

    def reject(self, entry: Entry, problem: str) -> bool:
        """Bar an entry that a request found unusable: quarantine it, count it, log it.

        ``False`` where it was replaced or deleted meanwhile: look again.
        """
        return self._bar(entry, problem) is not _Barred.REPLACED

    # Operators: raise what went wrong.

    def list(self, where: EntryFilter | None = None) -> Iterator[Entry]:
        """Matching entries, newest use first."""
        return self.backend.entries(where or EntryFilter())

    def entry(self, key_prefix: str) -> Entry:
        """The one entry whose key begins with these hex digits.

        Raises:
            NotFoundError: no entry does.
            InputError: several do.
        """
        matches = list(self.list(EntryFilter(key_prefix=key_prefix.lower())))
        if not matches:
            raise NotFoundError(f"no stored state has a key that begins with {key_prefix!r}")
        if len(matches) > 1:
            raise InputError(f"{len(matches)} keys begin with {key_prefix!r}; give more digits")
        return matches[0]

    def update(
        self,
        key: StateKey,
        *,
        pinned: bool | None = None,
        labels: dict[str, str] | None = None,
        expires_at: float | None = None,
    ) -> bool:
        """Change what is given; ``False`` where no such entry is stored."""
        return self.backend.update(key, Change(pinned, expires_at, labels))

    def delete(self, key: StateKey) -> bool:
        """Remove a state; ``False`` where it was not stored."""
        return self.backend.delete(key, "deleted")

    def departed(self, keys: Sequence[StateKey]) -> dict[StateKey, Departed]:
        """What is remembered of keys that were removed."""
        return self.backend.departed(keys)

    def usage(self, namespace: str | None = None) -> Usage:
        """Totals of what is stored, in all or of a namespace."""
        return self.backend.usage(namespace)

    def sweep(self, grace_s: float = 3600.0) -> Swept:
        """Remove expired entries, and blobs older than `grace_s` that interrupted writes left
        behind.
        """
        swept = self.backend.sweep(self._clock(), grace_s)
        self.metrics.evictions.labels(policy="ttl", reason="expired").inc(swept.expired)
        return swept

    def check(self, entry: Entry) -> str:
        """Read and check one blob as a load would; ``""`` if sound, else what is wrong."""
        return self._load_or_problem(entry)[1]

    def holds(self, entry: Entry) -> bool:
        """Whether `entry` is still stored with this very blob, ready for use."""
        where = EntryFilter(key_prefix=entry.key.hex, status=Status.READY)
        return any(stored.blob == entry.blob for stored in self.list(where))

    def quarantine(self, entry: Entry, reason: str) -> bool:
        """Bar `entry` from use. ``False`` if it was replaced or removed meanwhile."""
        barred = Change(status=Status.QUARANTINED, reason=reason)
        return self.backend.update(entry.key, barred, blob=entry.blob)

    def now(self) -> float:
        """The store's clock: seconds since the epoch."""
        return self._clock()

    def close(self) -> None:
        """Release the backend; a second call does nothing."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The ways of one lookup.

    def _find(self, identity: Identity, keys: Sequence[StateKey]) -> tuple[Found | None, str]:
        try:
            for _ in range(MAX_STEPS_DOWN):
                entry = self.backend.longest(keys, self._clock()) if keys else None
                if entry is None:
                    return None, "miss"
                keys = keys[keys.index(entry.key) :]
                if Identity(entry.fingerprint, entry.namespace) != identity:
                    log.warning("%s is asked for as another's state: a miss", entry.key)
                    keys = keys[1:]
                    continue
                try:
                    state, problem = self._load_or_problem(entry)
                except BackendError as error:
                    if not entry.tier:
                        raise
                    self._kept("find", error)
                    keys = keys[1:]  # another tier may hold a shorter one
                    continue
                if state is not None:
                    return Found(entry, state), "hit"
                if self._bar(entry, problem) is _Barred.FAILED:
                    keys = keys[1:]
                # Else the same keys again: another tier may hold a sound copy.
            log.warning("gave up a lookup after %d unusable states", MAX_STEPS_DOWN)
            return None, "miss"
        except BackendError as error:
            self._kept("find", error)
            return None, "error"

    def _bar(self, entry: Entry, problem: str) -> _Barred:
        cause = problem.partition(":")[0]
        if cause == LockedError.__name__:  # sound for whoever has the key: stepped over, it stays
            self.metrics.errors.labels(operation="decrypt").inc()
            log.warning("%s is not readable here: %s", entry.key, problem)
            return _Barred.FAILED
        try:
            if not self.quarantine(entry, problem):
                return _Barred.REPLACED
            outcome = _Barred.BARRED
        except BackendError as error:  # a place that only reads: step over it all the same
            self._kept("quarantine", error)
            outcome = _Barred.FAILED
        self.metrics.quarantined.labels(cause=cause).inc()
        log.warning("quarantined %s: %s", entry.key, problem)
        return outcome

    def _load_or_problem(self, entry: Entry) -> tuple[State | None, str]:
        try:
            state = self._load(entry)
        except ContainerError as error:
            return None, f"{type(error).__name__}: {error}"
        return state, "" if state is not None else "Missing: the blob has gone"

    def _load(self, entry: Entry) -> State | None:
        limits = self._limits
        limits.check("the blob's size in bytes", entry.blob_bytes, limits.container_bytes)
        blob = self.backend.read(entry)
        if blob is None:
            return None
        self.metrics.read_bytes.inc(len(blob))
        header, state = codec.decode(blob, self._limits)
        codec.expect(header, entry.key, entry.fingerprint, entry.namespace)
        return state

    def _encode_and_publish(
        self, entry: Entry, header: codec.Header, state: State, *, durable: bool
    ) -> PutOutcome:
        try:
            codec.check_limits(header, self._limits)
        except LimitError as error:  # each load would refuse it
            log.warning(
                "dropped a put of %s, which no lookup here would read: %s", entry.key, error
            )
            return PutOutcome.DROPPED
        blob = codec.encode(header, state, self._codec_name)
        entry = replace(entry, blob_bytes=sum(len(part) for part in blob))
        try:
            published = self.backend.publish(entry, blob, durable=durable)
        except BackendError as error:
            self._kept("put", error)
            return PutOutcome.DROPPED
        if not published:
            return PutOutcome.PRESENT
        self.metrics.written_bytes.inc(entry.blob_bytes)
        return PutOutcome.PUBLISHED

    def _kept(self, operation: str, error: BackendError) -> None:
        self.metrics.errors.labels(operation=operation).inc()
        self._complaints.add(operation, "%s went on without the store: %s", operation, error)


class _Barred(Enum):
    """What became of barring an entry."""

    BARRED = auto()
    REPLACED = auto()  # by another, or it has gone: look again
    FAILED = auto()  # the place did not take it down
