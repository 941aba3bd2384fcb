"""Policies from the books: by last use, by use, by use and gain. See `policy` for the score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

from statestore.entry import Entry
from statestore.eviction.policy import (
    TRANSIENT,
    Judge,
    Mean,
    Verdict,
    gain_tokens,
    score,
    transient,
)
from statestore.keys import StateKey


class _Blind:
    """What goes by puts and uses alone."""

    judge: Judge | None = None

    def seen(self, keys: Sequence[StateKey], found: Entry | None, now: float) -> None:
        """Lookups tell nothing more."""


class Lru(_Blind):
    """What was used least recently goes first."""

    name = "lru"

    def put(self, entry: Entry, age: float, now: float) -> Verdict:
        """The moment itself, unless the age is ahead of it."""
        return Verdict(now + TRANSIENT if transient(entry) else score(1.0, age, now))

    def hit(self, entry: Entry, age: float, now: float) -> Verdict:  # noqa: ARG002 - all are alike
        """As a put."""
        return Verdict(score(1.0, age, now))


class _ByWorth(_Blind, ABC):
    """What `worth` says of an entry, against the mean of what was put, with ageing."""

    def __init__(self) -> None:
        self._mean = Mean()

    def put(self, entry: Entry, age: float, now: float) -> Verdict:
        """The first score; what is only passing by has no part in the mean."""
        if transient(entry):
            return Verdict(now + TRANSIENT)
        self._mean.add(self.worth(entry))
        return self._relative(entry, age, now)

    def hit(self, entry: Entry, age: float, now: float) -> Verdict:
        """The score with one more use."""
        return self._relative(replace(entry, hits=entry.hits + 1), age, now)

    @abstractmethod
    def worth(self, entry: Entry) -> float:
        """In any unit."""

    def _relative(self, entry: Entry, age: float, now: float) -> Verdict:
        worth = self.worth(entry)
        return Verdict(score(worth / (self._mean.value or worth), age, now))


class Lfu(_ByWorth):
    """What was used least often goes first; uses of long ago fade (LFU with dynamic ageing)."""

    name = "lfu"

    def worth(self, entry: Entry) -> float:
        """Uses, the first included."""
        return entry.hits + 1.0


class Gdsf(_ByWorth):
    """What spares fewest tokens per byte goes first (GreedyDual-Size-Frequency).

    A hit spares the tokens back to the nearest stored ancestor, not the whole prefix: without this
    state, that one would have been found.
    """

    name = "gdsf"

    def worth(self, entry: Entry) -> float:
        """Tokens per byte, over all uses."""
        return (entry.hits + 1.0) * gain_tokens(entry) / max(entry.blob_bytes, 1)
