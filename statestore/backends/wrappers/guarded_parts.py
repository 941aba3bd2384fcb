"""What a guarded place gives out besides states: leases, sightings and tallies.

Each of their calls has its deadline and asks the breakers of the place; see `guarded`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from statestore.backends.leases import Lease, Leases, Outcome
from statestore.backends.lookups import Lookups, LookupSums
from statestore.backends.sightings import PunctualSightings, Sightings
from statestore.keys import StateKey

T = TypeVar("T")


class Guard(Protocol):
    """Who keeps the deadlines and the breakers of a place. Both calls raise `UnavailableError`."""

    @property
    def find_s(self) -> float:
        """The deadline of what is small."""

    @property
    def fetch_s(self) -> float:
        """The deadline of what is worth waiting for."""

    def write(
        self, operation: str, work: Callable[[], T], limit_s: float | None, *, decides: bool = True
    ) -> T:
        """The result of `work`, a write; ``decides``: it may be the probe."""

    def ask(
        self,
        operation: str,
        work: Callable[[], T],
        limit_s: float,
        quick: Callable[[], T] | None = None,
    ) -> T:
        """The result of `work`, which reads; of `quick`, on this thread, where it can be had."""


class GuardedLeases:
    """`inner`, as writes of `guard`."""

    def __init__(self, inner: Leases, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    def acquire(self, key: StateKey, owner: str, ttl_s: float) -> Lease:
        """As the port says. An overdue one that is granted after all lapses by itself."""
        work = partial(self._inner.acquire, key, owner, ttl_s)
        return self._guard.write("acquire", work, self._guard.fetch_s, decides=False)

    def renew(self, key: StateKey, owner: str, ttl_s: float) -> bool:
        """As the port says."""
        work = partial(self._inner.renew, key, owner, ttl_s)
        return self._guard.write("renew", work, self._guard.fetch_s)

    def release(self, key: StateKey, owner: str, outcome: Outcome) -> None:
        """As the port says."""
        work = partial(self._inner.release, key, owner, outcome)
        self._guard.write("release", work, self._guard.fetch_s)

    def wait(self, key: StateKey, timeout_s: float) -> Lease | None:
        """As the port says, on this thread."""
        work = partial(self._inner.wait, key, timeout_s)
        return self._guard.write("wait", work, None, decides=False)


class GuardedSightings:
    """`inner`, behind `guard`."""

    def __init__(self, inner: Sightings, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard
        self._punctual = inner if isinstance(inner, PunctualSightings) else None

    def seen(self, marks: Sequence[bytes]) -> int:
        """As the port says."""
        limit_s, punctual = self._guard.find_s, self._punctual
        quick = None if punctual is None else partial(punctual.seen_within, marks, limit_s)
        return self._guard.ask("seen", partial(self._inner.seen, marks), limit_s, quick)

    def note(self, marks: Sequence[bytes]) -> None:
        """As the port says."""
        self._guard.write("note", partial(self._inner.note, marks), self._guard.find_s)


class GuardedLookups:
    """`inner`, behind `guard`."""

    def __init__(self, inner: Lookups, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard

    @property
    def lasting(self) -> bool:
        """As the port says."""
        return self._inner.lasting

    def add(self, sums: Sequence[LookupSums]) -> None:
        """As the port says."""
        self._guard.write("tally", partial(self._inner.add, sums), self._guard.find_s)

    def sums(self, namespace: str | None = None) -> list[LookupSums]:
        """As the port says, for operators."""
        return self._inner.sums(namespace)
