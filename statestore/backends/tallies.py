"""What states of each namespace and model take up, and what their hits have saved.

Sums over the entries that are stored now: what is evicted takes its hits with it. A place that can
sum by itself is `Tallying`; of the others every entry is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from statestore.backends.base import Backend
from statestore.backends.wrapper import Wrapper
from statestore.entry import Entry, EntryFilter, Status


@dataclass(frozen=True, slots=True)
class Tally:
    """The sums over one namespace's states of one model."""

    namespace: str
    model: str
    entries: int = 0
    blob_bytes: int = 0
    state_bytes: int = 0
    quarantined: int = 0
    pinned: int = 0
    used: int = 0  # entries with a hit or more
    hits: int = 0
    tokens_saved: int = 0  # that hits did not compute
    seconds_saved: float = 0.0  # of computing, as measured when the states were made

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.namespace if self.namespace == other.namespace else "",
            self.model if self.model == other.model else "",
            self.entries + other.entries,
            self.blob_bytes + other.blob_bytes,
            self.state_bytes + other.state_bytes,
            self.quarantined + other.quarantined,
            self.pinned + other.pinned,
            self.used + other.used,
            self.hits + other.hits,
            self.tokens_saved + other.tokens_saved,
            self.seconds_saved + other.seconds_saved,
        )


@runtime_checkable
class Tallying(Protocol):
    """A `Backend` that sums its entries by itself."""

    def tallies(self, namespace: str | None = None) -> list[Tally]:
        """One tally for each namespace, or `namespace` alone, and model."""


def tallies(backend: Backend, namespace: str | None = None) -> list[Tally]:
    """One tally for each namespace and model of `backend`, those with most bytes first."""
    while isinstance(backend, Wrapper) and not isinstance(backend, Tallying):
        backend = backend.inner
    if isinstance(backend, Tallying):
        found = backend.tallies(namespace)
    else:
        found = _summed(backend.entries(EntryFilter(namespace=namespace)))
    return sorted(found, key=lambda tally: (-tally.blob_bytes, tally.namespace, tally.model))


def _summed(entries: Iterable[Entry]) -> list[Tally]:
    sums: dict[tuple[str, str], Tally] = {}
    for entry in entries:
        group = entry.namespace, entry.model
        sums[group] = sums.get(group, Tally(*group)) + _of(entry)
    return list(sums.values())


def _of(entry: Entry) -> Tally:
    return Tally(
        entry.namespace,
        entry.model,
        entries=1,
        blob_bytes=entry.blob_bytes,
        state_bytes=entry.state_bytes,
        quarantined=int(entry.status is Status.QUARANTINED),
        pinned=int(entry.pinned),
        used=int(entry.hits > 0),
        hits=entry.hits,
        tokens_saved=entry.hits * entry.key.n_tokens,
        seconds_saved=entry.hits * entry.cost_s,
    )
