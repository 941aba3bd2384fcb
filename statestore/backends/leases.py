"""The right to compute one key, held for a time: so that many who want a state compute it once.

A lease is advice, never a lock that correctness hangs on: puts are idempotent and the first writer
wins, so a lease that is lost costs computing something twice. Times are durations by the clock of
the place that keeps the lease; hosts whose clocks differ agree all the same.

A released lease is remembered for a while with its outcome, so that those who waited know whether
to look into the store or to compute at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from statestore.keys import StateKey

#: Seconds for which the outcome of a released lease is remembered.
OUTCOME_S: Final = 10.0


class Outcome(StrEnum):
    """What came of a computation."""

    PUBLISHED = "published"  # the state is in the store
    NOT_STORED = "not stored"  # whoever wants it computes it


@dataclass(frozen=True, slots=True)
class Lease:
    """A key's lease as it stood at one moment."""

    owner: str
    remaining_s: float  # until it lapses or, with an outcome, is forgotten
    outcome: Outcome | None = None  # ``None``: being computed


class Leases(Protocol):
    """Gives out leases. Safe to use from several threads, processes and hosts.

    Every method raises `UnavailableError` where the place cannot answer.
    """

    def acquire(self, key: StateKey, owner: str, ttl_s: float) -> Lease:
        """Take the lease on `key` if nobody holds it; how it stands after that.

        Yours if its `owner` is `owner` and it has no outcome. One that has lapsed, or was released
        as published, is free; one released as not stored is returned as it is until it is
        forgotten. Taking one's own again renews it.
        """

    def renew(self, key: StateKey, owner: str, ttl_s: float) -> bool:
        """Hold on to it for `ttl_s` from now; ``False``: it lapsed and went to another, or away."""

    def release(self, key: StateKey, owner: str, outcome: Outcome) -> None:
        """Let go, leaving the outcome for `OUTCOME_S`; nothing happens where another holds it."""

    def wait(self, key: StateKey, timeout_s: float) -> Lease | None:
        """How the lease stands once it was released, lapsed or `timeout_s` passed; ``None``: free.

        Wakes up by a notification where the place has one, else looks again at jittered intervals.
        """
