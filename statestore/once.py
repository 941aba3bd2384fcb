"""Compute once: among the threads of a process by a future, among processes by a lease.

A caller that wants a key joins it and gets a `Turn`. The first thread of a process leads there, and
asks for the lease in the name of all; the others wait for its value, in memory. `Turn.settle` then
says what to do: compute, take the value, or look into the store.

The leader gives its value to the threads beside it at once, and ends the turn when the value is
stored, or will not be. So the lease is released after the put, and until then the value serves
every thread of this process without a round trip.

Nobody waits longer than waiting can be worth (`Patience`), nor for a place that gives no leases or
has failed: then the key is computed twice. Nothing here knows what a value is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final, Generic, TypeVar

from statestore.backends.leases import Lease, Leases, Outcome
from statestore.complaints import Complaints
from statestore.errors import BackendError
from statestore.forking import renew_in_child
from statestore.keys import StateKey
from statestore.owner import has_ended, is_beside, new_owner

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

#: After a failure nobody asks again for so many times as long as it took.
_RESPITE: Final = 5.0
#: Seconds after which a waiter sees whether the one it waits for still lives.
_PULSE_S: Final = 1.0
_A_MOMENT_S: Final = 0.01


class Ruling(StrEnum):
    """What a turn's holder does."""

    COMPUTE = "compute"  # look into the store, then compute
    TAKE = "take"  # `Turn.value` is what another thread computed
    STORED = "stored"  # somebody stored it: it is there, or something deeper


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for something that takes oneself `compute_s` to compute.

    Twice that for a leader on another machine. Longer for one on this machine: leader and waiters
    share the processors, so a slow leader means that all are slow, and giving up would slow it
    further. The wait goes on if the lease lapses sooner than one could have computed, since then
    one continues from the leader's last checkpoint, and alone. But it ends for a lease that is
    renewed again and again.
    """

    compute_s: float
    slack: float = 2.0
    slack_beside: float = 8.0
    floor_s: float = 1.0  # a put and a few looks
    check: Callable[[], object] | None = None  # called each second; may raise, and ends the waiting

    def seconds(self, *, beside: bool) -> float:
        """How long to wait for a leader whose lease does not lapse meanwhile."""
        slack = self.slack_beside if beside else self.slack
        return slack * self.compute_s + self.floor_s

    def left_s(self, waited_s: float, lease: Lease) -> float:
        """Seconds to wait on after `waited_s`; 0 or less: no longer."""
        self.consult()
        left_s = self.seconds(beside=is_beside(lease.owner)) - waited_s
        if left_s <= 0 and lease.remaining_s <= self.compute_s + left_s:
            return lease.remaining_s + _A_MOMENT_S
        return left_s

    def consult(self) -> None:
        """Call `check`, which may raise to end the waiting."""
        if self.check is not None:
            self.check()


class _Flight(Generic[T]):
    """What the threads of a process wait for."""

    value: T | None = None
    ended = False
    stored = False


class Once(Generic[T]):
    """Gives out turns. Safe to use from several threads; a forked child begins without any.

    Args:
        leases: where others are kept from computing the same; ``None``: this process alone.
        least_ttl_s: seconds for which a lease is taken at least.
    """

    def __init__(self, leases: Callable[[], Leases | None], *, least_ttl_s: float = 10.0) -> None:
        self.least_ttl_s = least_ttl_s
        self._leases = leases
        self._complaints = Complaints(log)
        self.renew()
        renew_in_child(self)

    def renew(self) -> None:
        """Begin anew, as a forked child does: nobody computes here."""
        self.owner = new_owner()
        self._changed = threading.Condition()  # guards the flights
        self._flights: dict[StateKey, _Flight[T]] = {}
        self._asks_at = 0.0

    def held(self, keys: Sequence[StateKey]) -> T | None:
        """The value of the first of `keys` that was computed here and may not be stored yet."""
        if not self._flights:
            return None
        with self._changed:
            for key in keys:
                flight = self._flights.get(key)
                if flight is not None and flight.value is not None:
                    return flight.value
        return None

    def join(self, key: StateKey, ttl_s: float = 0.0) -> Turn[T]:
        """A turn at `key`, which its holder must settle and end; at most one round trip.

        Args:
            key: of the value.
            ttl_s: seconds for which a lease is taken, if that is more than the least.
        """
        turn = Turn(self, key, max(ttl_s, self.least_ttl_s))
        turn.join()
        return turn

    # For turns.

    def enter(self, key: StateKey) -> tuple[_Flight[T], bool]:
        """The flight of `key`, and whether it is new: then the caller leads."""
        with self._changed:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = _Flight()
            return flight, True

    def give(self, flight: _Flight[T], value: T) -> None:
        """Hand a value to the threads that wait here."""
        with self._changed:
            flight.value = value
            self._changed.notify_all()

    def leave(self, key: StateKey, flight: _Flight[T], *, stored: bool) -> None:
        """The flight is over."""
        with self._changed:
            flight.ended, flight.stored = True, stored
            if self._flights.get(key) is flight:
                del self._flights[key]
            self._changed.notify_all()

    def await_flight(self, flight: _Flight[T], timeout_s: float) -> bool:
        """Wait until there is a value, or none to come; ``False``: too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: flight.value is not None or flight.ended, timeout_s
            )

    def release(self, key: StateKey, outcome: Outcome, *, at_once: bool) -> None:
        """Let this process's lease go."""
        self.ask(
            lambda leases: leases.release(key, self.owner, outcome),
            otherwise=None,
            at_once=at_once,
        )

    def forgo(self, key: StateKey, outcome: Outcome) -> None:
        """Let a lease go some time after its flight, unless another flight has it by now."""
        if key not in self._flights:
            self.release(key, outcome, at_once=False)

    def ask(self, call: Callable[[Leases], R], otherwise: R, *, at_once: bool = True) -> R:
        """What `call` returns. `otherwise` where there are no leases or their place fails; with
        `at_once`, as for a request that waits, also while the place has just failed.
        """
        began = time.monotonic()
        if at_once and began < self._asks_at:
            return otherwise
        try:
            leases = self._leases()
            return otherwise if leases is None else call(leases)
        except BackendError as error:
            now = time.monotonic()
            self._asks_at = now + _RESPITE * (now - began)
            self._complaints.add("leases", "went on without leases: %s", error)
            return otherwise


class Turn(Generic[T]):
    """One caller's turn at one key. Settled by the thread that joined, ended by any."""

    def __init__(self, once: Once[T], key: StateKey, ttl_s: float) -> None:
        self.key = key
        self.value: T | None = None
        self.holds = False  # the lease is ours
        self._once = once
        self._ttl_s = ttl_s
        self._leads = False
        self._other: Lease | None = None  # somebody else's lease
        self._renew_at = 0.0

    def join(self) -> None:
        """Lead here, and then ask for the lease; or follow the thread that does."""
        self._flight, self._leads = self._once.enter(self.key)
        if self._leads:
            try:
                self._acquire()
            except BaseException:
                self.abandon()
                raise

    def settle(self, patience: Patience) -> Ruling:
        """Wait as long as that is worth it, then say what to do."""
        try:
            return self._settle(patience)
        except BaseException:
            self.abandon()
            raise

    def renew(self) -> None:
        """Between chunks: renew the lease when a third of its time has passed. It is lost if its
        place says so, not if the place cannot be asked.
        """
        if self.holds and time.monotonic() >= self._renew_at:
            began = time.monotonic()
            self.holds = self._once.ask(
                lambda leases: leases.renew(self.key, self._once.owner, self._ttl_s),
                otherwise=True,
            )
            self._renew_at = began + self._ttl_s / 3

    def give(self, value: T) -> None:
        """Hand what was computed to the threads that wait beside this one."""
        if self._leads:
            self._once.give(self._flight, value)

    def end(self, outcome: Outcome) -> None:
        """The put is done, or will not be: release the lease and let the waiters go on. May be
        called again.
        """
        self._release(outcome, at_once=False)
        self._leave(stored=outcome is Outcome.PUBLISHED)

    def abandon(self) -> None:
        """Nothing was computed: those who wait look again, and one of them computes."""
        self._release(Outcome.PUBLISHED, at_once=True)  # the outcome that leaves the key free
        self._leave(stored=False)

    def drop(self, outcome: Outcome) -> Callable[[], None] | None:
        """The put will not be done: let the waiters go on, and forget the value. Returns what
        releases the lease, if it is held; that takes a round trip, and keeps no value alive.
        """
        holds, self.holds = self.holds, False
        self._leave(stored=False)
        return partial(self._once.forgo, self.key, outcome) if holds else None

    def _release(self, outcome: Outcome, *, at_once: bool) -> None:
        if self.holds:
            self.holds = False
            self._once.release(self.key, outcome, at_once=at_once)

    def _leave(self, *, stored: bool) -> None:
        if self._leads:
            self._leads = False
            self._once.leave(self.key, self._flight, stored=stored)

    def _settle(self, patience: Patience) -> Ruling:
        while not self._leads:
            if not self._await_flight(patience):
                return Ruling.COMPUTE
            self.value = self._flight.value
            if self.value is not None:
                return Ruling.TAKE
            if self._flight.stored:
                return Ruling.STORED
            self.join()
        return Ruling.COMPUTE if self._follow(patience) else Ruling.STORED

    def _await_flight(self, patience: Patience) -> bool:
        """Wait for the thread that leads here; ``False``: too long."""
        left_s = patience.seconds(beside=True)
        while left_s > 0:
            if self._once.await_flight(self._flight, min(left_s, _PULSE_S)):
                return True
            patience.consult()
            left_s -= _PULSE_S
        return False

    def _follow(self, patience: Patience) -> bool:
        """Wait for another process, if one holds the lease. ``False``: it published."""
        began = time.monotonic()
        while (other := self._other) is not None:
            if other.outcome is Outcome.PUBLISHED:
                self.end(Outcome.PUBLISHED)
                return False
            left_s = patience.left_s(time.monotonic() - began, other)
            if other.outcome is Outcome.NOT_STORED or left_s <= 0:
                return True
            if has_ended(other.owner):
                self._bury(other)
            else:
                self._await(left_s)
            if self._other is None or self._other.owner != other.owner:
                began = time.monotonic()  # another one computes now
        return True

    def _await(self, left_s: float) -> None:
        """Wait a while for the other's outcome; ask for the lease if it has gone."""
        seen = self._once.ask(
            lambda leases: (leases.wait(self.key, min(left_s, _PULSE_S)),), otherwise=None
        )
        if seen is None:  # the place fails: as if there were no lease
            self._other = None
        elif seen[0] is None:
            self._acquire()
        else:
            self._other = seen[0]

    def _bury(self, other: Lease) -> None:
        """Release the lease of a process that was killed on this machine, and take it."""
        log.info("%s: the process that computed it has ended", self.key)
        self._once.ask(
            lambda leases: leases.release(self.key, other.owner, Outcome.PUBLISHED), otherwise=None
        )
        self._acquire()

    def _acquire(self) -> None:
        began = time.monotonic()
        lease = self._once.ask(
            lambda leases: leases.acquire(self.key, self._once.owner, self._ttl_s), otherwise=None
        )
        self.holds = lease is not None and lease.owner == self._once.owner and lease.outcome is None
        self._other = None if self.holds else lease
        self._renew_at = began + self._ttl_s / 3
