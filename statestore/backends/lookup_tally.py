"""Counts a process's lookups, and adds them to the place's tally aside from requests.

A lookup costs a count in memory. A thread, started at the first, adds what was counted every
`EVERY_S`, and when `flush`, `close` or the end of the process (`ending`) tell it to: these only
wait for it, since a signal's handler may run in the midst of what holds a lock, the place's or
this one's. What the place does not take is kept and added later; what a killed process had not
added is lost. Nothing here raises, and a place that fails is in nobody's way. A forked child begins
with nothing counted.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from statestore.backends.base import Backend
from statestore.backends.ending import at_end
from statestore.backends.fields import check_text
from statestore.backends.lookups import ROWS, LookupSums, lookups_of
from statestore.codec import Limits
from statestore.errors import BackendError, InputError
from statestore.forking import renew_in_child
from statestore.metrics import Metrics

log = logging.getLogger(__name__)

EVERY_S: Final = 5.0

_JOIN_S: Final = 1.0  # it has nothing left to do
_LOCK_S: Final = 0.5  # whoever holds it counts, or was interrupted at it by a signal
_LOOK_S: Final = 1.0  # whether the thread still lives
_NAME_BYTES: Final = Limits().name_bytes  # what is longer belongs to no state

#: The tier that answered, whether it had the whole prompt, namespace, fingerprint.
_Ended: TypeAlias = tuple[str, bool, str, bytes]


class LookupTally:
    """Counts for one store. Safe to use from several threads, and across a fork.

    Args:
        backend: keeps the tally, or none.
        metrics: counts what was kept from the caller.
        clock: seconds since the epoch.
    """

    def __init__(
        self, backend: Backend, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._backend = backend
        self._metrics = metrics
        self._clock = clock
        self.renew()
        renew_in_child(self)
        at_end(self)

    def renew(self) -> None:
        """Begin with nothing counted, as a forked child does: what was is its parent's."""
        self._lock = threading.Lock()  # guards `_counts` and `_thread`
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._closed = False
        self._counts: dict[_Ended, _Count] = {}
        self._thread: threading.Thread | None = None

    def note(
        self,
        namespace: str,
        fingerprint: bytes,
        tokens_asked: int,
        *,
        tier: str = "",
        tokens_found: int = 0,
        seconds_found: float = 0.0,
    ) -> None:
        """Count the lookup of a prompt; ``tokens_found=0``: nothing was found."""
        ended = (tier, tokens_found >= tokens_asked, namespace, fingerprint)
        with self._lock:
            count = self._counts.get(ended) or self._begin(ended)
            count.lookups += 1
            count.found += tokens_found > 0
            count.tokens_asked += tokens_asked
            count.tokens_found += tokens_found
            count.seconds_found += seconds_found

    def flush(self, timeout_s: float | None = None) -> bool:
        """Add what was counted now. ``False``: `timeout_s` passed, or the place did not take it."""
        return self._tell(_Order(), timeout_s)

    def close(self) -> None:
        """Flush, once; what the place does not take is lost. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._tell(_Order(last=True), None)
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def _tell(self, order: _Order, timeout_s: float | None) -> bool:
        """Have the thread add what was counted, and wait; without one, add it here."""
        thread = self._thread
        if thread is None or not thread.is_alive():
            return self._write()
        self._orders.put(order)
        ends = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while not order.done.wait(max(0.0, min(_LOOK_S, ends - time.monotonic()))):
            if not thread.is_alive() or time.monotonic() >= ends:
                return False
        return order.taken

    def _begin(self, ended: _Ended) -> _Count:
        """A new count, or that of the rest; under the lock."""
        if len(self._counts) >= ROWS or not _is_kept(ended[2]):
            ended = (*ended[:2], "", b"")
        if self._thread is None and not self._closed:
            # A daemon: the interpreter waits for other threads before it runs what `atexit` holds.
            work = (weakref.ref(self), self._orders)
            thread = threading.Thread(
                target=_write_as_told, args=work, name="lookup-tally", daemon=True
            )
            with suppress(RuntimeError):  # no more threads: `flush` adds what was counted
                thread.start()
                self._thread = thread
        return self._counts.setdefault(ended, _Count(since=self._clock()))

    def _write(self) -> bool:
        if not self._lock.acquire(timeout=_LOCK_S):
            return False
        try:
            counts, self._counts = self._counts, {}
        finally:
            self._lock.release()
        if not counts:
            return True
        try:
            place = lookups_of(self._backend)
            if place is not None:
                place.add([count.sums(ended) for ended, count in counts.items()])
        except (BackendError, InputError) as error:  # the latter: no text to a catalog
            self._metrics.errors.labels(operation="tally").inc()
            log.debug("%d counts of lookups wait: %s", len(counts), error)
            if isinstance(error, BackendError):
                self._take_back(counts)
            return False
        return True

    def _take_back(self, counts: dict[_Ended, _Count]) -> None:
        with self._lock:
            newer, self._counts = self._counts, counts
            for ended, count in newer.items():
                known = ended in counts or len(counts) < ROWS
                place = ended if known else (*ended[:2], "", b"")
                counts.setdefault(place, _Count(count.since)).add(count)


@dataclass(slots=True)
class _Count:
    """Lookups that ended alike."""

    since: float
    lookups: int = 0
    found: int = 0
    tokens_asked: int = 0
    tokens_found: int = 0
    seconds_found: float = 0.0

    def add(self, other: _Count) -> None:
        """Count the other's too."""
        self.lookups += other.lookups
        self.found += other.found
        self.tokens_asked += other.tokens_asked
        self.tokens_found += other.tokens_found
        self.seconds_found += other.seconds_found

    def sums(self, ended: _Ended) -> LookupSums:
        """For a place's tally."""
        tier, _, namespace, fingerprint = ended
        return LookupSums(
            tier,
            namespace,
            fingerprint,
            lookups=self.lookups,
            found=self.found,
            tokens_asked=self.tokens_asked,
            tokens_found=self.tokens_found,
            seconds_found=self.seconds_found,
            since=self.since,
        )


@dataclass(slots=True, eq=False)
class _Order:
    """To add what was counted, for somebody who waits."""

    last: bool = False  # and to end
    taken: bool = False
    done: threading.Event = field(default_factory=threading.Event)


def _write_as_told(tally: weakref.ref[LookupTally], orders: queue.SimpleQueue[_Order]) -> None:
    """Write every `EVERY_S` and at each order, until the last one, or until the tally has gone."""
    order = None
    while order is None or not order.last:
        order = None
        with suppress(queue.Empty):
            order = orders.get(timeout=EVERY_S)
        if (mine := tally()) is None:
            return
        taken = False
        try:
            taken = mine._write()  # noqa: SLF001 - its thread
        except Exception:  # whatever it is: the next counts are to be added
            log.exception("a tally of lookups was not written; no request is affected")
        del mine
        if order is not None:
            order.taken = taken
            order.done.set()


def _is_kept(namespace: str) -> bool:
    """Whether every catalog can keep such a name, and a container have it."""
    try:
        check_text(namespace, "namespace")
    except InputError:
        return False
    return len(namespace.encode()) <= _NAME_BYTES
