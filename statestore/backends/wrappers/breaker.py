"""A circuit breaker: when to leave a place alone, and when to look whether it has come back. Pure
but for a lock.

    closed ── failed ──> open ── the pause is over ──> half-open ── succeeded ──> closed
                           ^                               └────── failed ──────────┐
                           └───────────────────── a pause twice as long ────────────┘

A call is let in with a ticket, and what it says of itself counts only while nothing has changed
since: a call from before an outage can neither end the outage nor prolong it. While half-open, one
call is let in and no other. A place that fails again soon after it came back goes on with the
pauses where it was, so one that answers probes and nothing else is not asked every second.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

#: A pause is stretched or shortened by up to this share: hosts that lost a server together do not
#: come back to it together.
JITTER: Final = 0.2


class Circuit(StrEnum):
    """What a breaker does with calls."""

    CLOSED = "closed"  # all are let in
    HALF_OPEN = "half-open"  # one is, and decides
    OPEN = "open"  # none is


@dataclass(frozen=True, slots=True)
class Pauses:
    """How long a place is left alone: `first_s`, doubled with each failure up to `longest_s`."""

    first_s: float = 1.0
    longest_s: float = 30.0


class Breaker:
    """One circuit. Safe to use from several threads.

    Args:
        pauses: between probes.
        clock: seconds from any moment on.
        chance: a number from 0 to 1, for the jitter.
    """

    def __init__(
        self,
        pauses: Pauses | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._pauses = pauses or Pauses()
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()  # guards what follows
        self._circuit = Circuit.CLOSED
        self._ticket = 1  # grows with each change
        self._pause_s = 0.0  # the last one, without its jitter
        self._probe_at = 0.0
        self._closed_at = -float("inf")

    @property
    def circuit(self) -> Circuit:
        """What happens to calls now."""
        return self._circuit

    @property
    def remaining_s(self) -> float:
        """Seconds until a probe is let in; 0.0 where none is waited for."""
        with self._lock:
            if self._circuit is not Circuit.OPEN:
                return 0.0
            return max(0.0, self._probe_at - self._clock())

    def enter(self) -> int | None:
        """A ticket, if the circuit is closed."""
        with self._lock:
            return self._ticket if self._circuit is Circuit.CLOSED else None

    def probe(self) -> int | None:
        """A ticket for the one call that decides, if the circuit is open and its pause is over."""
        with self._lock:
            if self._circuit is not Circuit.OPEN or self._clock() < self._probe_at:
                return None
            self._become(Circuit.HALF_OPEN)
            return self._ticket

    def succeeded(self, ticket: int) -> bool:
        """The call of `ticket` was answered. ``True``: that closed the circuit."""
        with self._lock:
            if ticket != self._ticket or self._circuit is not Circuit.HALF_OPEN:
                return False
            self._become(Circuit.CLOSED)
            self._closed_at = self._clock()
            return True

    def failed(self, ticket: int) -> bool:
        """The call of `ticket` was not answered. ``True``: that opened the circuit."""
        with self._lock:
            if ticket != self._ticket:
                return False
            self._forget_what_is_long_ago()
            doubled = max(2 * self._pause_s, self._pauses.first_s)
            self._pause_s = min(doubled, self._pauses.longest_s)
            stretched = self._pause_s * (1 + JITTER * (2 * self._chance() - 1))
            self._probe_at = self._clock() + stretched
            self._become(Circuit.OPEN)
            return True

    def doubted(self, ticket: int) -> bool:
        """Something speaks against the place: open, and a probe is let in at once.

        ``True``: that opened the circuit.
        """
        with self._lock:
            if ticket != self._ticket or self._circuit is not Circuit.CLOSED:
                return False
            self._forget_what_is_long_ago()
            self._probe_at = self._clock()
            self._become(Circuit.OPEN)
            return True

    def returned(self, ticket: int) -> None:
        """The call of `ticket` says nothing about the place; another one may probe."""
        with self._lock:
            if ticket == self._ticket and self._circuit is Circuit.HALF_OPEN:
                self._become(Circuit.OPEN)

    def _forget_what_is_long_ago(self) -> None:
        closed = self._circuit is Circuit.CLOSED
        if closed and self._clock() - self._closed_at >= self._pause_s:
            self._pause_s = 0.0

    def _become(self, circuit: Circuit) -> None:
        self._circuit = circuit
        self._ticket += 1
