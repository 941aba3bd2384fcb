"""What states of each namespace and model take up, what their hits have saved, and the lookups.

Most are sums over the entries that are stored now: what is evicted takes its hits with it. A place
that can sum by itself is `Tallying`; of the others every entry is read. The lookups are those that
the place's tally has (`lookups`), whatever became of the states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from statestore.backends.base import Backend
from statestore.backends.lookups import LookupSums, lookups_of
from statestore.backends.wrapper import Wrapper
from statestore.entry import Entry, EntryFilter, Status

#: Digits of a fingerprint that stand for a model whose name is not known.
SHORT: Final = 12


@dataclass(frozen=True, slots=True)
class Tally:
    """The sums over one namespace's states of one model, and over its lookups."""

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
    lookups: int = 0  # prompts that were looked for
    found: int = 0  # those of which a state was found
    tokens_asked: int = 0  # of all these prompts
    tokens_found: int = 0  # that need not be computed
    seconds_found: float = 0.0  # that computing them took
    since: float | None = None  # the first lookup, in seconds since the epoch

    @property
    def hit_rate(self) -> float | None:
        """The share of lookups that found a state; ``None`` before the first."""
        return self.found / self.lookups if self.lookups else None

    @property
    def token_hit_rate(self) -> float | None:
        """The share of the tokens asked for that were found; ``None`` before the first."""
        return self.tokens_found / self.tokens_asked if self.tokens_asked else None

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
            self.lookups + other.lookups,
            self.found + other.found,
            self.tokens_asked + other.tokens_asked,
            self.tokens_found + other.tokens_found,
            self.seconds_found + other.seconds_found,
            min((at for at in (self.since, other.since) if at is not None), default=None),
        )


@runtime_checkable
class Tallying(Protocol):
    """A `Backend` that sums its entries by itself."""

    def tallies(self, namespace: str | None = None) -> list[tuple[bytes, Tally]]:
        """One tally for each namespace, or `namespace` alone, model and fingerprint; with that."""


def tallies(backend: Backend, namespace: str | None = None) -> list[Tally]:
    """One tally for each namespace and model of `backend`, those with most bytes first.

    A model that has lookups and no states goes by the first digits of its fingerprint.
    """
    asked = [row for row in lookups(backend, namespace) if not row.tier]
    return joined(by_fingerprint(backend, namespace), asked)


def lookups(backend: Backend, namespace: str | None = None) -> list[LookupSums]:
    """The lookups that `backend` keeps a tally of; none where it keeps none."""
    tally = lookups_of(backend)
    return [] if tally is None else tally.sums(namespace)


def joined(stored: Iterable[tuple[bytes, Tally]], asked: Sequence[LookupSums] = ()) -> list[Tally]:
    """One tally for each namespace and model, those with most bytes first.

    Args:
        stored: the entries' sums, with their models' fingerprints.
        asked: of one tier, to be added to the model of their fingerprint.
    """
    sums: dict[tuple[str, str], Tally] = {}
    names: dict[tuple[str, bytes], str] = {}
    for fingerprint, one in sorted(stored, key=lambda pair: -pair[1].blob_bytes):
        names.setdefault((one.namespace, fingerprint), one.model)
        group = one.namespace, one.model
        sums[group] = sums.get(group, Tally(*group)) + one
    for row in asked:
        short = row.fingerprint.hex()[:SHORT]
        group = row.namespace, names.get((row.namespace, row.fingerprint), short)
        sums[group] = sums.get(group, Tally(*group)) + _asked(row, group[1])
    return sorted(sums.values(), key=lambda one: (-one.blob_bytes, one.namespace, one.model))


def by_fingerprint(backend: Backend, namespace: str | None) -> list[tuple[bytes, Tally]]:
    """One tally of the entries for each namespace, model and fingerprint; with that."""
    while isinstance(backend, Wrapper) and not isinstance(backend, Tallying):
        backend = backend.inner
    if isinstance(backend, Tallying):
        return backend.tallies(namespace)
    sums: dict[tuple[bytes, str, str], Tally] = {}
    for entry in backend.entries(EntryFilter(namespace=namespace)):
        group = entry.fingerprint, entry.namespace, entry.model
        sums[group] = sums.get(group, Tally(*group[1:])) + _of(entry)
    return [(group[0], one) for group, one in sums.items()]


def _asked(row: LookupSums, model: str) -> Tally:
    return Tally(
        row.namespace,
        model,
        lookups=row.lookups,
        found=row.found,
        tokens_asked=row.tokens_asked,
        tokens_found=row.tokens_found,
        seconds_found=row.seconds_found,
        since=row.since,
    )


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
