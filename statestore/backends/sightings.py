"""Which prefixes were seen before: the index behind the rule of second sight.

A *sighting* is the mark (`statestore.keys.marks`) of a chunk end of a prompt that had to be
computed. The index is bounded, the oldest sightings go, and a few may get lost or be made up (marks
are short): a lost one costs computing once more, a false one a state too many. Nothing else hangs
on it.

Marks are given as they lie along a prompt: whoever saw one saw all before it. So a lookup halves
its way, and costs the logarithm of the prompt's length.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from statestore.backends.base import Backend
from statestore.complaints import Complaints
from statestore.errors import BackendError
from statestore.keys.second_sight import GROUP_BYTES
from statestore.metrics import Metrics

log = logging.getLogger(__name__)

#: Sightings that an index keeps, about.
SIGHTINGS: Final = 1 << 20

#: Of the sightings that fall into one bucket the newest so many are kept.
BUCKET: Final = 16
#: Bytes of one sighting in a bucket; and of a mark, behind its group, what names the bucket.
PRINT: Final = 4


class Sightings(Protocol):
    """An index of seen prefixes. Safe to use from several threads, processes and hosts.

    Both methods raise `UnavailableError` where the place cannot answer, and `FullError` where it
    takes nothing.
    """

    def seen(self, marks: Sequence[bytes]) -> int:
        """How many of a prompt's `marks`, shallow first, were noted: the deepest that was, and
        those before it.
        """

    def note(self, marks: Sequence[bytes]) -> None:
        """These were seen. What was noted already is no error."""


@runtime_checkable
class PunctualSightings(Protocol):
    """`Sightings` that can answer in time by themselves, as a `Punctual` place does."""

    def seen_within(self, marks: Sequence[bytes], limit_s: float) -> int:
        """`Sightings.seen`. Raises `UnavailableError` when `limit_s` has passed, and
        `NotAtHandError` at once where no connection is open.
        """


@runtime_checkable
class Sighting(Protocol):
    """A `Backend` that may keep such an index, shared by all who use the place."""

    @property
    def sightings(self) -> Sightings | None:
        """The index; ``None``: this place has none."""


def sightings_of(backend: Backend) -> Sightings | None:
    """The index that `backend` keeps, if it does."""
    return backend.sightings if isinstance(backend, Sighting) else None


class LocalSightings:
    """Among the threads of one process, in 4 bytes for each sighting.

    Four bytes of a mark's own choose a bucket, the next four are kept there, newest first. The
    system gives memory as it is written to. Two threads that note at once may lose a sighting:
    there is no lock that a fork could leave shut.
    """

    def __init__(self, sightings: int = SIGHTINGS) -> None:
        self._buckets = max(1, sightings // BUCKET)
        self._prints = bytearray(self._buckets * BUCKET * PRINT)

    def seen(self, marks: Sequence[bytes]) -> int:
        """As the port says."""
        return bisect_left(range(len(marks)), 1, key=lambda place: self._absent(marks[place]))

    def note(self, marks: Sequence[bytes]) -> None:
        """As the port says."""
        size = BUCKET * PRINT
        for mark in marks:
            if self._absent(mark):
                first = self._bucket(mark)
                held = self._prints[first : first + size - PRINT]
                self._prints[first : first + size] = _print(mark) + held

    def _absent(self, mark: bytes) -> bool:
        first = self._bucket(mark)
        bucket = bytes(self._prints[first : first + BUCKET * PRINT])
        wanted, at = _print(mark), -1
        while (at := bucket.find(wanted, at + 1)) >= 0:
            if at % PRINT == 0:
                return False
        return True

    def _bucket(self, mark: bytes) -> int:
        return int.from_bytes(mark[GROUP_BYTES:][:PRINT], "big") % self._buckets * BUCKET * PRINT


def _print(mark: bytes) -> bytes:
    return mark[GROUP_BYTES + PRINT :][:PRINT]


class Unfailing:
    """`shared`, and where that fails, or is not there, an index of this process. Never raises.

    Args:
        shared: asked first.
        metrics: counts what was kept from the caller.
    """

    def __init__(self, shared: Sightings | None, metrics: Metrics) -> None:
        self._shared = shared
        self._own = LocalSightings()
        self._metrics = metrics
        self._complaints = Complaints(log)

    @property
    def shared(self) -> bool:
        """Whether it is asked anywhere else than in this process's memory."""
        return not (self._shared is None or isinstance(self._shared, LocalSightings))

    def seen(self, marks: Sequence[bytes]) -> int:
        """As the port says."""
        if self._shared is not None and marks:
            try:
                return self._shared.seen(marks)
            except BackendError as error:
                self._kept("seen", error)
        return self._own.seen(marks)

    def note(self, marks: Sequence[bytes]) -> None:
        """As the port says."""
        if self._shared is not None and marks:
            try:
                self._shared.note(marks)
            except BackendError as error:
                self._kept("note", error)
            else:
                return
        self._own.note(marks)

    def _kept(self, operation: str, error: BackendError) -> None:
        self._metrics.errors.labels(operation=operation).inc()
        self._complaints.add(operation, "went on with sightings of this process: %s", error)
