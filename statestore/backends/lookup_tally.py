"""Counts a process's lookups, and adds them to the place's tally aside from requests.

A lookup costs a count in memory. A thread, started at the first, adds what was counted every
`EVERY_S`; so do `flush`, `close` and the end of the process (`ending`). What the place does not
take is kept and added later; what a killed process had not added is lost. Nothing here raises, and
a place that fails is in nobody's way. A forked child begins with nothing counted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from statestore.backends.base import Backend
from statestore.backends.ending import at_end
from statestore.backends.lookups import ROWS, LookupSums, lookups_of
from statestore.errors import BackendError, InputError
from statestore.metrics import Metrics

log = logging.getLogger(__name__)

EVERY_S: Final = 5.0

_JOIN_S: Final = 1.0  # it has nothing left to do

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
        _all.add(self)
        at_end(self)

    def renew(self) -> None:
        """Begin with nothing counted, as a forked child does: what was is its parent's."""
        self._lock = threading.Lock()  # guards `_counts` and `_thread`
        self._writing = threading.Lock()  # one adds at a time
        self._ended = threading.Event()
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
        if not self._writing.acquire(timeout=-1 if timeout_s is None else timeout_s):
            return False
        try:
            return self._write()
        finally:
            self._writing.release()

    def close(self) -> None:
        """Flush, once; what the place does not take is lost. A second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self.flush()
        thread = self._thread
        if thread is not None:
            thread.join(_JOIN_S)

    def _begin(self, ended: _Ended) -> _Count:
        """A new count, or that of the rest; under the lock."""
        if len(self._counts) >= ROWS:
            ended = (*ended[:2], "", b"")
        if self._thread is None and not self._ended.is_set():
            # A daemon: the interpreter waits for other threads before it runs what `atexit` holds.
            work = (weakref.ref(self), self._ended)
            self._thread = threading.Thread(
                target=_write_now_and_then, args=work, name="lookup-tally", daemon=True
            )
            self._thread.start()
        return self._counts.setdefault(ended, _Count(since=self._clock()))

    def _write(self) -> bool:
        with self._lock:
            counts, self._counts = self._counts, {}
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


def _write_now_and_then(tally: weakref.ref[LookupTally], ended: threading.Event) -> None:
    """Flush every `EVERY_S` until `ended`, or until the tally has gone."""
    while not ended.wait(EVERY_S) and (mine := tally()) is not None:
        try:
            mine.flush()
        except Exception:  # whatever it is: the next counts are to be added
            log.exception("a tally of lookups was not written; no request is affected")
        del mine


_all: weakref.WeakSet[LookupTally] = weakref.WeakSet()


def _renew_in_child() -> None:
    for tally in list(_all):
        tally.renew()


os.register_at_fork(after_in_child=_renew_in_child)
