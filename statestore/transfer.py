"""States on their way from one place to another, with everything that their entries say.

A container travels as it is: in its codec, and encrypted if it is. It is decrypted only where it is
to be opened on the way, or where its target encrypts with keys of its own. Every container is
checked before it is stored, even without its key: checksums are taken over the stored bytes. A
state that arrives twice is stored once, so an interrupted transfer is simply started again.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from statestore import codec
from statestore.backends.base import Backend, Buffer
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.budgeted import Budgeted
from statestore.backends.wrappers.encrypted import Encrypted
from statestore.backends.wrappers.guarded import Guarded
from statestore.codec.container import read_whole
from statestore.codec.frames import check_sum
from statestore.entry import Entry, EntryFilter, Status
from statestore.errors import BackendError, ContainerError, LockedError
from statestore.store import StateStore


class Outcome(StrEnum):
    """What became of one state."""

    COPIED = "copied"
    PRESENT = "present"  # a usable one was there
    DAMAGED = "damaged"  # it stays behind
    GONE = "gone"  # removed since it was listed
    NO_ROOM = "no_room"  # what the place's budget would drop sooner than what it holds


class Loaded(NamedTuple):
    """A state taken from its place: a sound blob, or ``None`` and the reason."""

    entry: Entry
    blob: memoryview | None
    problem: str = ""

    @property
    def outcome(self) -> Outcome | None:
        """What is known already; ``None``: it is sound, and on its way."""
        if self.problem:
            return Outcome.DAMAGED
        return Outcome.GONE if self.blob is None else None


def untimed(backend: Backend) -> Backend:
    """The place without deadlines and breakers: an operator's work may take long."""
    while isinstance(backend, Guarded):
        backend = backend.inner
    return backend


def encrypts(backend: Backend) -> bool:
    """Whether what lies there is encrypted with keys that are at hand."""
    while isinstance(backend, Wrapper):
        if isinstance(backend, Encrypted):
            return True
        backend = backend.inner
    return False


class Source:
    """Where states come from.

    Args:
        store: of one place.
        opened: decrypt what is encrypted, where its keys are at hand.
    """

    def __init__(self, store: StateStore, *, opened: bool) -> None:
        self._store = store
        self._backend = untimed(store.backend) if opened else _innermost(store.backend)

    def load(self, entry: Entry) -> Loaded:
        """The blob of `entry`, checked. Raises `BackendError` where the place fails."""
        try:
            blob = self._backend.read(entry)
            if blob is not None:
                check(entry, blob)
        except ContainerError as error:
            if self._replaced(entry):
                return Loaded(entry, None)
            return Loaded(entry, None, f"{type(error).__name__}: {error}")
        if blob is None and not self._replaced(entry):
            return Loaded(entry, None, "Missing: the blob has gone")
        return Loaded(entry, blob)

    def _replaced(self, entry: Entry) -> bool:
        """Whether the entry went meanwhile, or names another blob."""
        where = EntryFilter(key_prefix=entry.key.hex)
        return not any(stored.blob == entry.blob for stored in self._store.list(where))


def check(entry: Entry, blob: Buffer, limits: codec.Limits | None = None) -> codec.Header:
    """The container's header, if the container is sound and that of `entry`. Raises a
    `ContainerError`.

    For an encrypted one without its key this rules out damage, not tampering.
    """
    view, header, _ = read_whole(blob, limits or codec.Limits())
    codec.expect(header, entry.key, entry.fingerprint, entry.namespace)
    if header.seal is None:
        codec.decode(view, limits)
    for i, frame in enumerate(header.frames if header.seal is not None else ()):
        check_sum(f"frame {i}", view[frame.offset : frame.offset + frame.length], frame.checksum)
    return header


def usable(entry: Entry, now: float) -> bool:
    """Whether it is worth transferring: ready, and not expired."""
    unexpired = entry.expires_at is None or entry.expires_at > now
    return entry.status is Status.READY and unexpired


def present(store: StateStore, entry: Entry) -> bool:
    """Whether `store` has a usable state of this key."""
    return untimed(store.backend).longest([entry.key], store.now()) is not None


def bring(store: StateStore, entry: Entry, blob: Buffer) -> Outcome:
    """Publish a sound blob with its entry as it is, but under a write id of its own.

    Raises:
        BackendError: the place fails, or has no room.
        ContainerError: the place encrypts, and has not the key that this one is encrypted with.
        InputError: the entry says what no catalog holds.
    """
    if present(store, entry):
        return Outcome.PRESENT
    if _is_too_old(store, entry, memoryview(blob).nbytes):
        return Outcome.NO_ROOM
    header = codec.read_header(blob)
    copy = replace(
        entry,
        blob=f"{entry.key}.{secrets.token_hex(8)}",
        blob_bytes=memoryview(blob).nbytes,
        schema_id=header.schema_id,
        state_bytes=header.state_bytes,
        has_output=header.output is not None,
        expires_at=entry.expires_at or _expiry(store),
        tier="",
    )
    backend = untimed(store.backend)
    if _publish(backend, copy, blob):
        return Outcome.COPIED
    if present(store, entry):
        return Outcome.PRESENT
    # What was there has expired, but not yet when this state was made.
    backend.delete(entry.key, "expired")
    return Outcome.COPIED if _publish(backend, copy, blob) else Outcome.PRESENT


def _is_too_old(store: StateStore, entry: Entry, size: int) -> bool:
    """Whether a full place has evicted, for want of room, something that was used after this one,
    or nothing yet: so states that arrive newest use first do not push out those that came before
    them.
    """
    budgeted = _budgeted(store.backend)
    if budgeted is None:
        return False
    budget, name = budgeted.budget, entry.namespace
    limits = {None: budget.total_bytes, name: budget.namespaces.get(name)}
    for namespace, limit in limits.items():
        if limit is not None:
            usage = budgeted.inner.usage(namespace)
            old = usage.age == 0.0 or max(entry.used_at, entry.created_at) <= usage.age
            if old and usage.blob_bytes + size > budget.high * limit:
                return True
    return False


def _expiry(store: StateStore) -> float | None:
    """When what arrives now expires by the rule of the place; ``None``: never."""
    budgeted = _budgeted(store.backend)
    if budgeted is None or budgeted.ttl_s is None:
        return None
    return store.now() + budgeted.ttl_s


def _budgeted(backend: Backend) -> Budgeted | None:
    while isinstance(backend, Wrapper):
        if isinstance(backend, Budgeted):
            return backend
        backend = backend.inner
    return None


def _publish(backend: Backend, entry: Entry, blob: Buffer) -> bool:
    try:
        return backend.publish(entry, [blob], durable=True)
    except BackendError as error:
        if isinstance(error.__cause__, ContainerError):
            raise error.__cause__ from None
        raise


def locked(problem: str) -> bool:
    """Whether a problem is the want of a key, and no damage."""
    return problem.startswith(LockedError.__name__)


def _innermost(backend: Backend) -> Backend:
    while isinstance(backend, Wrapper):
        backend = backend.inner
    return backend


class Tally:
    """What became of many states."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(Outcome, 0)
        self.blob_bytes = 0  # of those that were copied
        self.problems: list[tuple[str, str]] = []  # key, what is wrong

    def add(self, loaded: Loaded, outcome: Outcome) -> None:
        """Count one."""
        self.counts[outcome] += 1
        if outcome is Outcome.COPIED:
            self.blob_bytes += len(loaded.blob or b"")
        elif outcome is Outcome.DAMAGED:
            self.problems.append((str(loaded.entry.key), loaded.problem))
