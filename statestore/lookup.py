"""One lookup: the deepest state that is stored and sound.

Every load checks the container, and that its key, fingerprint and namespace are those of its entry
and those that were asked for. What fails is quarantined, counted and logged, and the next shorter
key is tried. A sound state asked for under another identity is passed over and stays: no caller can
bar another's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from statestore import codec
from statestore.backends.base import Backend, read_followed
from statestore.backends.fields import fitting
from statestore.entry import Change, Entry, Status
from statestore.errors import BackendError, ContainerError, LockedError, UnavailableError
from statestore.keys import StateKey
from statestore.metrics import Metrics
from statestore.schema import State

log = logging.getLogger(__name__)

#: How many unsound states one lookup may step over before it counts as a miss.
MAX_STEPS_DOWN = 16

#: How a lookup may end.
OUTCOMES = ("hit", "miss", "error")


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


class Barred(Enum):
    """What became of barring an entry."""

    BARRED = auto()
    REPLACED = auto()  # by another, or it has gone: look again
    FAILED = auto()  # the place did not take it down


class Lookup:
    """Looks into one backend. Safe to use from several threads.

    Args:
        backend: where entries and blobs live.
        limits: the largest container that is read.
        metrics: instruments to count on.
        kept: told of an operation that failed without the caller's being told.
    """

    def __init__(
        self,
        backend: Backend,
        limits: codec.Limits,
        metrics: Metrics,
        kept: Callable[[str, BackendError], None],
    ) -> None:
        self._backend = backend
        self._limits = limits
        self._metrics = metrics
        self._kept = kept

    def find(
        self, identity: Identity, keys: Sequence[StateKey], now: float
    ) -> tuple[Found | None, str]:
        """The state of the first of `keys` that is stored and sound; and how the lookup ended, one
        of `OUTCOMES`.
        """
        try:
            for _ in range(MAX_STEPS_DOWN):
                entry = self._backend.longest(keys, now) if keys else None
                if entry is None:
                    return None, "miss"
                if entry.fingerprint != identity.fingerprint or (
                    entry.namespace != identity.namespace
                ):
                    log.warning("%s is asked for as another's state: a miss", entry.key)
                    keys = _shorter(keys, entry)
                    continue
                try:
                    state, problem = self.load(entry)
                except BackendError as error:
                    if not entry.tier:
                        raise
                    self._kept("find", error)
                    keys = _shorter(keys, entry)  # another tier may hold a shorter one
                    continue
                if state is not None:
                    return Found(entry, state), "hit"
                if self.bar(entry, problem) is Barred.FAILED:
                    keys = _shorter(keys, entry)
                # Else the same keys again: another tier may hold a sound copy.
            log.warning("gave up a lookup after %d unusable states", MAX_STEPS_DOWN)
            return None, "miss"
        except BackendError as error:
            self._kept("find", error)
            return None, "error"

    def load(self, entry: Entry) -> tuple[State | None, str]:
        """The state of `entry`, or ``None`` and what is wrong with it. Raises `UnavailableError`
        where there is no memory for it, which says nothing about the blob.
        """
        try:
            state = self._sound(entry)
        except ContainerError as error:
            return None, f"{type(error).__name__}: {error}"
        except MemoryError as error:
            raise UnavailableError(
                f"{entry.key}: this process has no memory for its {entry.state_bytes} bytes: raise "
                "its limit, or lower the budgets of memory"
            ) from error
        return state, "" if state is not None else "Missing: the blob has gone"

    def bar(self, entry: Entry, problem: str) -> Barred:
        """Quarantine an entry that cannot be used, count it, log it."""
        cause = problem.partition(":")[0]
        if cause == LockedError.__name__:  # sound for whoever has the key: stepped over, it stays
            self._metrics.errors.labels(operation="decrypt").inc()
            log.warning("%s is not readable here: %s", entry.key, problem)
            return Barred.FAILED
        try:
            if not self.quarantine(entry, problem):
                return Barred.REPLACED
            outcome = Barred.BARRED
        except BackendError as error:  # a place that only reads: step over it all the same
            self._kept("quarantine", error)
            outcome = Barred.FAILED
        self._metrics.quarantined.labels(cause=cause).inc()
        log.warning("quarantined %s: %s", entry.key, problem)
        return outcome

    def quarantine(self, entry: Entry, reason: str) -> bool:
        """Bar `entry` from use. ``False`` if it was replaced or removed meanwhile."""
        barred = Change(status=Status.QUARANTINED, reason=fitting(reason, "reason"))
        return self._backend.update(entry.key, barred, blob=entry.blob)

    def _sound(self, entry: Entry) -> State | None:
        limits = self._limits
        limits.check("the blob's size in bytes", entry.blob_bytes, limits.container_bytes)
        following = codec.Following(entry.blob_bytes, limits)
        if entry.blob_bytes < codec.FOLLOWED_BYTES:
            blob = self._backend.read(entry)
        else:
            blob = read_followed(self._backend, entry, following)
        if blob is None:
            return None
        self._metrics.read_bytes.inc(len(blob))
        header, state = following.decode(blob)
        codec.expect(header, entry.key, entry.fingerprint, entry.namespace)
        return state


def _shorter(keys: Sequence[StateKey], entry: Entry) -> Sequence[StateKey]:
    """The keys after that of `entry`."""
    return keys[keys.index(entry.key) + 1 :]
