"""The store: find the longest stored prefix, keep new states, never pass on a wrong one.

What it adds to a bare backend:

* **Sound or nothing.** Every load is checked, and what fails is quarantined; see `lookup`.
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
from types import TracebackType
from typing import Self

from statestore import codec
from statestore.backends.base import Backend, Deferring, Swept
from statestore.backends.fields import check_labels, check_text
from statestore.backends.leases import Leases
from statestore.backends.lookup_tally import LookupTally
from statestore.complaints import Complaints
from statestore.entry import Change, Departed, Entry, EntryFilter, Role, Status, Usage
from statestore.errors import (
    BackendError,
    InputError,
    NotFoundError,
)
from statestore.keys import StateKey
from statestore.lookup import OUTCOMES, Barred, Found, Identity, Lookup
from statestore.metrics import Metrics
from statestore.puts import PutOutcome, Puts
from statestore.schema import State

__all__ = ["Found", "Identity", "PutOutcome", "StateStore"]

log = logging.getLogger(__name__)


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
        self._limits = limits or codec.Limits()
        self._clock = clock
        self._complaints = Complaints(log)
        self._tally = LookupTally(backend, self.metrics, clock)
        # An instrument's labels are looked up once: at each lookup that costs as much as counting.
        self._ended = {name: self.metrics.lookups.labels(outcome=name) for name in OUTCOMES}
        self._puts = Puts(backend, codec_name, self._limits, self.metrics, self._kept)
        self._lookup = Lookup(backend, self._limits, self.metrics, self._kept)

    # Requests: never raise because of the backend.

    def find(
        self,
        identity: Identity,
        keys: Sequence[StateKey],
        *,
        touch: bool = True,
        tally: bool = True,
    ) -> Found | None:
        """The state of the first of `keys` (deepest first) that is stored and sound.

        A hit is noted in the entry before this returns; a caller in a hurry says ``touch=False``
        and calls `touch` later. With ``tally=False`` it is no lookup for the hit rate, which counts
        prompts: a second look, or one that no prompt asked for.
        """
        began = time.perf_counter()
        try:
            found, outcome = self._lookup.find(identity, keys, self._clock())
        finally:
            self.metrics.fetch_seconds.observe(time.perf_counter() - began)
        if found is not None and touch:
            self.touch(found.entry)
        self._ended[outcome].inc()
        if tally and keys and outcome != "error":
            self._count(identity, keys[0], found)
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
            labels: free words for people and filters: `LABELS` at most, see `backends.fields`.
            pinned: never dropped to make room.
            ttl_s: seconds after which it counts as gone.
            ancestor_tokens: length of the nearest state that was stored when this one came.
            durable: return only once the place that others look into has it. Otherwise a store
                of several tiers brings it there behind the caller's back.

        Raises:
            InputError: a field means nothing, or cannot be kept.
        """
        check_text(model, "model")  # ahead of encoding, and of a container that no reader takes
        check_text(identity.namespace, "namespace")
        check_labels(labels or {})
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
            outcome = self._puts.publish(entry, header, state, durable=durable)
        self.metrics.puts.labels(outcome=outcome.value).inc()
        return outcome

    @property
    def leases(self) -> Leases | None:
        """The rights to compute a key that this store's place gives out."""
        return self.backend.leases

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until what was put is where others look for it; ``False``: not within `timeout_s`.

        Only a store of several tiers has anything to wait for. Lookups that were counted are
        written too, if the place takes them within the same time.
        """
        began = time.monotonic()
        done = self.backend.flush(timeout_s) if isinstance(self.backend, Deferring) else True
        passed_s = time.monotonic() - began
        self._tally.flush(None if timeout_s is None else max(0.0, timeout_s - passed_s))
        return done

    def reject(self, entry: Entry, problem: str) -> bool:
        """Bar an entry that a request found unusable: quarantine it, count it, log it.

        ``False`` where it was replaced or deleted meanwhile: look again.
        """
        return self._lookup.bar(entry, problem) is not Barred.REPLACED

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
        return self._lookup.load(entry)[1]

    def holds(self, entry: Entry) -> bool:
        """Whether `entry` is still stored with this very blob, ready for use."""
        where = EntryFilter(key_prefix=entry.key.hex, status=Status.READY)
        return any(stored.blob == entry.blob for stored in self.list(where))

    def quarantine(self, entry: Entry, reason: str) -> bool:
        """Bar `entry` from use. ``False`` if it was replaced or removed meanwhile."""
        return self._lookup.quarantine(entry, reason)

    def now(self) -> float:
        """The store's clock: seconds since the epoch."""
        return self._clock()

    def close(self) -> None:
        """Release the backend; a second call does nothing."""
        self._tally.close()
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

    def _count(self, identity: Identity, deepest: StateKey, found: Found | None) -> None:
        whose = identity.namespace, identity.fingerprint, deepest.n_tokens
        if found is None:
            self._tally.note(*whose)
            return
        entry = found.entry
        self._tally.note(
            *whose, tier=entry.tier, tokens_found=entry.key.n_tokens, seconds_found=entry.cost_s
        )

    def _kept(self, operation: str, error: BackendError) -> None:
        self.metrics.errors.labels(operation=operation).inc()
        self._complaints.add(operation, "%s went on without the store: %s", operation, error)
