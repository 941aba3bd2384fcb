"""How often entries of a kind are used again, per second that they are held: learnt from what
happened to those that came before, whether they were still stored or not.

A kind is a path from the coarse to the fine, for example (ends of prompts, used once) and then (of
a third turn, a short one). Where little was seen of the fine kind, the coarser one speaks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from typing import Final, TypeAlias

Kind: TypeAlias = tuple[Hashable, ...]

#: Uses' worth of the coarser kind that a finer one begins with.
_PRIOR: Final = 6.0
#: Observations over which what was seen fades to 1/e.
_MEMORY: Final = 20_000
_STEP: Final = 1000


class Densities:
    """Uses per second held, by kind; each observation weighs what a use spares."""

    def __init__(self) -> None:
        self._uses: dict[Hashable, float] = defaultdict(float)
        self._held: dict[Hashable, float] = defaultdict(float)
        self._weight = 0.0
        self._count = 0

    def add(self, kind: Kind, held_s: float, weight: float, *, used: bool) -> None:
        """An entry was held for `held_s` until it was used, or was given up."""
        for level in ((), *kind):
            self._held[level] += held_s * weight
            if used:
                self._uses[level] += weight
        self._weight += weight
        self._count += 1
        if self._count % _STEP == 0:
            self._fade(math.exp(-_STEP / _MEMORY))

    def relative(self, kind: Kind) -> float:
        """How many times the density of all; 1.0 before anything was seen."""
        held = self._held[()]
        uses = self._uses[()]
        if held <= 0.0 or uses <= 0.0:
            return 1.0
        prior = _PRIOR * self._weight / min(self._count, _MEMORY)
        overall = density = uses / held
        for level in kind:
            density = (self._uses.get(level, 0.0) + prior * density / overall) / (
                self._held.get(level, 0.0) + prior / overall
            )
        return density / overall

    def _fade(self, factor: float) -> None:
        self._weight *= factor
        for table in (self._uses, self._held):
            for level in list(table):
                table[level] *= factor
