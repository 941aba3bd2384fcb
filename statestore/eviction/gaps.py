"""How long it takes until what is stored is used again: a histogram that forgets."""

from __future__ import annotations

import math
from typing import Final

from statestore.eviction.policy import HOLD_S

_PER_OCTAVE: Final = 4
_BINS: Final = 27 * _PER_OCTAVE  # to about four years
_QUANTILE: Final = 0.95
_FEW: Final = 50  # gaps below which nothing is said
_MEMORY: Final = 1000  # gaps after which older ones fade by a tenth


class Gaps:
    """Gaps between uses, weighted by what the use spared."""

    def __init__(self) -> None:
        self._bins = [0.0] * _BINS
        self._count = 0
        self._longest_s = HOLD_S

    @property
    def longest_s(self) -> float:
        """Seconds after which hardly anything is used any more."""
        return self._longest_s

    def add(self, gap_s: float, weight: float) -> None:
        """Take a gap into account."""
        place = int(_PER_OCTAVE * math.log2(max(gap_s, 1.0)))
        self._bins[min(place, _BINS - 1)] += weight
        self._count += 1
        if self._count % _MEMORY == 0:
            self._bins = [0.9 * held for held in self._bins]
        if self._count % _FEW == 0:
            self._longest_s = self._quantile()

    def _quantile(self) -> float:
        wanted, reached = _QUANTILE * sum(self._bins), 0.0
        place = 0
        while reached < wanted and place < _BINS:
            reached += self._bins[place]
            place += 1
        return math.exp2(place / _PER_OCTAVE)
