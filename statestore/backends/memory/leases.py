"""Leases between the threads of one process. Waiters are woken; nothing is looked at twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from statestore.backends.leases import OUTCOME_S, Lease, Outcome
from statestore.keys import StateKey

_CROWD: Final = 1024  # keys, above which what has lapsed is thrown out


@dataclass(frozen=True, slots=True)
class _Held:
    owner: str
    until: float  # by the monotonic clock
    outcome: Outcome | None = None


class LocalLeases:
    """The `Leases` of one process.

    Args:
        monotonic: seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._changed = threading.Condition()  # guards what follows
        self._held: dict[StateKey, _Held] = {}

    def acquire(self, key: StateKey, owner: str, ttl_s: float) -> Lease:
        """Take the lease on `key` if nobody holds it; how it stands after that."""
        with self._changed:
            now = self._monotonic()
            held = self._standing(key, now)
            mine = held is not None and held.owner == owner and held.outcome is None
            if held is None or mine or held.outcome is Outcome.PUBLISHED:
                held = _Held(owner, now + ttl_s)
                self._keep(key, held, now)
            return Lease(held.owner, held.until - now, held.outcome)

    def renew(self, key: StateKey, owner: str, ttl_s: float) -> bool:
        """Hold on to it for `ttl_s` from now; ``False``: it lapsed and went to another, or away."""
        with self._changed:
            now = self._monotonic()
            if not self._holds(key, owner, now):
                return False
            self._keep(key, _Held(owner, now + ttl_s), now)
            return True

    def release(self, key: StateKey, owner: str, outcome: Outcome) -> None:
        """Let go, leaving the outcome for `OUTCOME_S`; nothing happens where another holds it."""
        with self._changed:
            now = self._monotonic()
            if self._holds(key, owner, now):
                self._keep(key, _Held(owner, now + OUTCOME_S, outcome), now)

    def wait(self, key: StateKey, timeout_s: float) -> Lease | None:
        """How the lease stands once it was released, lapsed or `timeout_s` passed.

        ``None``: it is free.
        """
        with self._changed:
            ends = self._monotonic() + timeout_s
            while True:
                now = self._monotonic()
                held = self._standing(key, now)
                if held is None:
                    return None
                if held.outcome is not None or now >= ends:
                    return Lease(held.owner, held.until - now, held.outcome)
                self._changed.wait(min(ends, held.until) - now)

    def _standing(self, key: StateKey, now: float) -> _Held | None:
        """What is known of `key`, unless its time is over."""
        held = self._held.get(key)
        if held is not None and held.until <= now:
            del self._held[key]
            return None
        return held

    def _holds(self, key: StateKey, owner: str, now: float) -> bool:
        held = self._standing(key, now)
        return held is not None and held.owner == owner and held.outcome is None

    def _keep(self, key: StateKey, held: _Held, now: float) -> None:
        if len(self._held) > _CROWD and key not in self._held:
            self._held = {k: known for k, known in self._held.items() if known.until > now}
        self._held[key] = held
        self._changed.notify_all()
