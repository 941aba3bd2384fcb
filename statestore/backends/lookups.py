"""How many lookups a place was asked, and how many it answered: the tally behind a hit rate.

A *lookup* is one prompt that was looked for, by its deepest key; a place that could not answer was
not asked. One that is found counts with the tokens of the state that it found, of the tokens that
were asked for. Counts are kept by namespace and model, each place its own. They are sums since the
first lookup: nothing is ever taken away, whatever is evicted.

They are figures for people. A process counts by itself and adds what it has counted from time to
time (`LookupTally`); what one that is killed has not added yet is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias, runtime_checkable

from statestore.backends.base import Backend

#: Rows that a place keeps; what comes after them is summed in one more, `LookupSums.rest`.
ROWS: Final = 4096

#: Whose lookups: tier, namespace, fingerprint.
Whose: TypeAlias = tuple[str, str, bytes]


@dataclass(frozen=True, slots=True)
class LookupSums:
    """The lookups of one namespace and one model.

    Attributes:
        tier: empty for the place's own. A home also keeps those of tiers nearer than it that do
            not outlive a process, by their names.
        namespace: whose states.
        fingerprint: of what computes them, 32 bytes.
        lookups: prompts that were looked for.
        found: those of which a state was found.
        tokens_asked: of all prompts.
        tokens_found: that need not be computed.
        seconds_found: that computing them took, when their states were made.
        since: the first lookup, in seconds since the epoch.
    """

    tier: str
    namespace: str
    fingerprint: bytes
    lookups: int = 0
    found: int = 0
    tokens_asked: int = 0
    tokens_found: int = 0
    seconds_found: float = 0.0
    since: float = 0.0

    @property
    def whose(self) -> Whose:
        """What is summed here."""
        return self.tier, self.namespace, self.fingerprint

    def __add__(self, other: LookupSums) -> LookupSums:
        return replace(
            self,
            lookups=self.lookups + other.lookups,
            found=self.found + other.found,
            tokens_asked=self.tokens_asked + other.tokens_asked,
            tokens_found=self.tokens_found + other.tokens_found,
            seconds_found=self.seconds_found + other.seconds_found,
            since=min(self.since, other.since),
        )

    @property
    def rest(self) -> LookupSums:
        """The same, of nobody: what is summed together for want of rows."""
        return replace(self, namespace="", fingerprint=b"")


class Lookups(Protocol):
    """A place's tally. Safe to use from several threads, processes and hosts.

    Both methods raise `UnavailableError` where the place cannot answer, `add` also `FullError`
    where it takes nothing: then nothing was added.
    """

    @property
    def lasting(self) -> bool:
        """Whether it outlives this process."""

    def add(self, sums: Sequence[LookupSums]) -> None:
        """Add what was counted, each to its row; where there are `ROWS`, new ones to the rest's."""

    def sums(self, namespace: str | None = None) -> list[LookupSums]:
        """All that was added, or what was for a namespace."""


@runtime_checkable
class CountingLookups(Protocol):
    """A `Backend` that may keep such a tally."""

    @property
    def lookups(self) -> Lookups | None:
        """The tally; ``None``: this place has none."""


def lookups_of(backend: Backend) -> Lookups | None:
    """The tally that `backend` keeps."""
    return backend.lookups if isinstance(backend, CountingLookups) else None


class LookupRows:
    """Sums by whose they are, `ROWS` at most and those of nobody; for one thread at a time."""

    def __init__(self, rows: int = ROWS) -> None:
        self._most = rows
        self._rows: dict[Whose, LookupSums] = {}

    def add(self, sums: Iterable[LookupSums]) -> None:
        """Add each to its row."""
        for one in sums:
            known = one.whose in self._rows or len(self._rows) < self._most
            mine = one if known else one.rest
            held = self._rows.get(mine.whose)
            self._rows[mine.whose] = mine if held is None else held + mine

    def all(self) -> list[LookupSums]:
        """Every row."""
        return list(self._rows.values())


class LocalLookups:
    """A tally of this process."""

    lasting: Final = False

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = LookupRows()

    def add(self, sums: Sequence[LookupSums]) -> None:
        """As the port says."""
        with self._lock:
            self._rows.add(sums)

    def sums(self, namespace: str | None = None) -> list[LookupSums]:
        """As the port says."""
        with self._lock:
            rows = self._rows.all()
        return [row for row in rows if namespace in (None, row.namespace)]
