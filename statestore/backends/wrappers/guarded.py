"""A place that costs its deadline once when it is down or slow, and then nothing until it is back.

**Deadlines.** `longest` and `touch` have `find_s`. `read` has `fetch_s` for up to 32 MiB, and in
proportion beyond. `update` and leases have `fetch_s`, as they are asked for before seconds of
computing. These calls run on threads of their own (`deadline`), since a driver's own time-outs are
longer. A place that keeps the time itself (`Punctual`) is asked for lookups and blobs on the
caller's thread. `publish` reads the caller's buffers and stays on the caller's thread, and so does
a lease's `wait`; the driver bounds both. Once a call has failed, and a probe after it, all calls
that still wait fail: the deadline of a large fetch is long.

**Two breakers.** One is for all calls: a lookup or fetch that fails opens it, and calls are then
refused at once until a probe in the background succeeds (`prober`). The other is for writes
(`publish`, `touch`, `update`, leases): a replica that accepts none can still be read. The write
that is let through as a probe is never one that a request waits for. A write that failed late, as
with a dead server, has the place probed at once, so that no lookup has to find out. A call that
failed quickly has cost nothing: a probe at once tells whether it was more than a broken connection,
before the first pause.

A failure is an `UnavailableError`. A full place or a damaged blob is an answer, and so is a place
where others held something for longer than a short call waits (`BusyError`). Operators' calls
(`entries`, `departed`, `usage`, `delete`, `evict`, `sweep`) pass through without deadline or
breaker: a person wants to know, and what they do may take long. A forked child begins anew, with
closed breakers.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

from statestore.backends.base import Backend, Blob, Follower, NotAtHandError, Punctual
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups, lookups_of
from statestore.backends.sightings import Sightings, sightings_of
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.breaker import Breaker, Circuit, Pauses
from statestore.backends.wrappers.deadline import Deadlines, OverdueError, Threads
from statestore.backends.wrappers.guarded_parts import (
    GuardedLeases,
    GuardedLookups,
    GuardedSightings,
)
from statestore.backends.wrappers.prober import Prober
from statestore.entry import Change, Entry
from statestore.errors import BusyError, ClosedError, UnavailableError
from statestore.forking import renew_in_child
from statestore.keys import StateKey
from statestore.metrics import Metrics
from statestore.url import StoreURL

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Options of every store's URL: `guarded`.
OPTIONS: Final = ("find_ms", "fetch_ms")

_NEAR: Final = frozenset({"file", "memory"})
_CLOSE_S: Final = 5.0  # as long as connections are closed in; then it goes on behind the caller
_CALLS: Final = {"all": "all calls", "writes": "calls that write"}
_NUMBERS: Final = {Circuit.CLOSED: 0.0, Circuit.HALF_OPEN: 1.0, Circuit.OPEN: 2.0}


def guarded(inner: Backend, url: StoreURL, metrics: Metrics) -> Backend:
    """`inner` with the deadlines of its URL: ``find_ms``, where 0 means none, and ``fetch_ms``.

    A place in this process or on this machine's disk has deadlines only if the URL sets one. Raises
    `SettingsError` for a value that is not a number of milliseconds.
    """
    given = {name: _seconds(url, name) for name in OPTIONS if name in url.common}
    usual = Deadlines()
    deadlines = Deadlines(given.get("find_ms", usual.find_s), given.get("fetch_ms", usual.fetch_s))
    if deadlines.find_s == 0 or not (given or url.scheme not in _NEAR):
        return inner
    if deadlines.fetch_s == 0:
        raise url.error("fetch_ms=0: write find_ms=0 for no deadlines")
    return Guarded(inner, deadlines, metrics=metrics)


def _seconds(url: StoreURL, name: str) -> float:
    text = url.common[name]
    if not re.fullmatch(r"[0-9]{1,7}", text):
        raise url.error(f"{name} is a number of milliseconds, not {text!r}")
    return int(text) / 1000


class Guarded(Wrapper):
    """`inner` with deadlines and breakers.

    Args:
        inner: the guard closes it.
        deadlines: of its calls.
        pauses: between probes.
        metrics: instruments to count on; new ones by default.
    """

    def __init__(
        self,
        inner: Backend,
        deadlines: Deadlines | None = None,
        *,
        pauses: Pauses | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(inner)
        self.metrics = metrics or Metrics()
        self._deadlines = deadlines or Deadlines()
        self._pauses = pauses or Pauses()
        self._place = inner.url
        self._closed = False
        self._looked_at: tuple[Backend | None, Punctual | None] = (None, None)
        self.renew()
        for calls in _CALLS:
            gauge = self.metrics.breaker_state.labels(place=self._place, calls=calls)
            gauge.set_function(partial(self._state, calls))
        renew_in_child(self)

    def renew(self) -> None:
        """Forget every thread and failure: in a forked child there are none."""
        self._threads = Threads(self._place)
        self._all = Breaker(self._pauses)
        self._writes = Breaker(self._pauses)
        self._prober = Prober(self._all, self._place, self._threads.give_up)
        self._reason = ""

    @property
    def circuits(self) -> tuple[Circuit, Circuit]:
        """Of the breaker for everything, and of the one for writes."""
        return self._all.circuit, self._writes.circuit

    @property
    def leases(self) -> Leases | None:
        """The leases that the place gives out, guarded as writes."""
        inner = self.inner.leases
        return None if inner is None else GuardedLeases(inner, self)

    @property
    def sightings(self) -> Sightings | None:
        """The place's index, with a lookup's deadline."""
        inner = sightings_of(self.inner)
        return None if inner is None else GuardedSightings(inner, self)

    @property
    def lookups(self) -> Lookups | None:
        """The place's tally; what is added is a write."""
        inner = lookups_of(self.inner)
        return None if inner is None else GuardedLookups(inner, self)

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """As the port says; overdue or refused it raises `UnavailableError`, as all here do."""
        limit_s = self._deadlines.find_s
        punctual = self._punctual()
        quick = None if punctual is None else partial(punctual.longest_within, keys, now, limit_s)
        return self.ask("longest", partial(self.inner.longest, keys, now), limit_s, quick)

    def read(self, entry: Entry) -> memoryview | None:
        """As the port says."""
        return self._fetch(entry, None)

    def read_followed(self, entry: Entry, follower: Follower) -> memoryview | None:
        """As `read`. Progress is told on this thread or not at all: on another, an overdue call
        would go on telling it.
        """
        return self._fetch(entry, follower)

    def _fetch(self, entry: Entry, follower: Follower | None) -> memoryview | None:
        limit_s = self._deadlines.of_fetch(entry.blob_bytes)
        quick = None
        if (punctual := self._punctual()) is not None:
            quick = partial(punctual.read_within, entry, limit_s, follower)
        return self.ask("read", partial(self.inner.read, entry), limit_s, quick)

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says, on this thread: `blob` is the caller's."""
        work = partial(self.inner.publish, entry, blob, durable=durable)
        return self.write("publish", work, None)

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,
        *,
        memo: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """As the port says."""
        work = partial(self.inner.touch, entry, now, score, memo=memo, expires_at=expires_at)
        self.write("touch", work, self._deadlines.find_s)

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """As the port says."""
        work = partial(self.inner.update, key, change, blob=blob)
        return self.write("update", work, self._deadlines.fetch_s, decides=False)

    def close(self) -> None:
        """Release connections; a call that hangs is not waited for."""
        if self._closed:
            return
        self._closed = True
        self._prober.end()
        try:
            self._threads.call("close", self.inner.close, _CLOSE_S)
        except OverdueError:
            log.warning("%s hangs; its connections close when it answers", self._place)
        except UnavailableError:  # there are no more threads
            self.inner.close()
        finally:
            self._threads.end()

    @property
    def find_s(self) -> float:
        """The deadline of short calls."""
        return self._deadlines.find_s

    @property
    def fetch_s(self) -> float:
        """The deadline of calls that are worth waiting for."""
        return self._deadlines.fetch_s

    def write(
        self, operation: str, work: Callable[[], T], limit_s: float | None, *, decides: bool = True
    ) -> T:
        """The result of `work`, a write.

        Args:
            operation: for messages and metrics.
            work: asks the place.
            limit_s: its deadline; ``None``: on this thread.
            decides: whether it may be the probe; not where a request waits for it.

        Raises:
            UnavailableError: it failed, is overdue, or a breaker is open.
        """
        of_all = self._admitted(operation)
        ticket = self._writes.enter()
        probes = ticket is None and decides
        if probes:
            ticket = self._writes.probe()
        if ticket is None:
            raise self._refusal(operation, self._writes)
        began = time.monotonic()
        try:
            result = self._run(operation, work, limit_s)
        except BusyError:
            self._writes.returned(ticket)
            raise
        except UnavailableError as error:
            late = self._late(began)
            if late and self._all.doubted(of_all):
                self._opened("all", error)
                self._prober.watch(self._question("usage", self.inner.usage, self.find_s))
            if self._opens(self._writes, ticket, late=late) and not probes:
                self._opened("writes", error)
            raise
        except BaseException:
            self._writes.returned(ticket)
            raise
        self._writes.succeeded(ticket)
        return result

    def ask(
        self,
        operation: str,
        work: Callable[[], T],
        limit_s: float,
        quick: Callable[[], T] | None = None,
    ) -> T:
        """The result of `work`, which reads. Where `quick` can be had, it is called instead, on
        this thread: it keeps `limit_s` by itself. Raises as `write`.
        """
        ticket = self._admitted(operation)
        began = time.monotonic()
        try:
            if quick is not None:
                with suppress(NotAtHandError):
                    return quick()
            return self._run(operation, work, limit_s)
        except BusyError:
            raise
        except UnavailableError as error:
            if self._opens(self._all, ticket, late=self._late(began)):
                self._opened("all", error)
                self._prober.watch(self._question(operation, work, limit_s))
            raise

    def _punctual(self) -> Punctual | None:
        """The place, if it keeps the time itself. Checked once, since that takes 20
        microseconds.
        """
        place, punctual = self._looked_at
        if place is not self.inner:
            punctual = self.inner if isinstance(self.inner, Punctual) else None
            self._looked_at = self.inner, punctual
        return punctual

    def _admitted(self, operation: str) -> int:
        """A ticket of the breaker for everything."""
        if self._closed:
            raise ClosedError(f"{self._place} was closed")
        ticket = self._all.enter()
        if ticket is None:
            self._prober.watch()
            raise self._refusal(operation, self._all)
        return ticket

    def _run(self, operation: str, work: Callable[[], T], limit_s: float | None) -> T:
        return work() if limit_s is None else self._threads.call(operation, work, limit_s)

    def _question(self, operation: str, work: Callable[[], T], limit_s: float) -> Callable[[], T]:
        return partial(self._threads.call, operation, work, limit_s)

    def _refusal(self, operation: str, breaker: Breaker) -> UnavailableError:
        self.metrics.short_circuited.labels(operation=operation).inc()
        return UnavailableError(
            f"{self._place} is left alone for {breaker.remaining_s:.1f} s more: {self._reason}"
        )

    def _late(self, began: float) -> bool:
        return time.monotonic() - began >= self._deadlines.find_s

    def _opens(self, breaker: Breaker, ticket: int, *, late: bool) -> bool:
        """Whether a failure opens `breaker`; after one that cost nothing a probe is let in at
        once.
        """
        return (not late and breaker.doubted(ticket)) or breaker.failed(ticket)

    def _opened(self, calls: str, error: UnavailableError) -> None:
        self._reason = str(error)
        self.metrics.breaker_openings.labels(place=self._place, calls=calls).inc()
        log.warning("%s; refused until it answers: %s", error, _CALLS[calls])

    def _state(self, calls: str) -> float:
        return _NUMBERS[(self._all if calls == "all" else self._writes).circuit]
