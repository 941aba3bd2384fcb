"""How often states of a kind are used, by the time since they were last used: learnt from what
happened to those that came before, whether they were still stored or not.

A kind is a path from the coarse to the fine, for example (ends of prompts, used once) and then (of
a third turn, a short one). Uses and the seconds waited for them are counted by kind and by age,
in steps of half an octave. All kinds share one curve of uses per second over age. Each coarse kind
bends it where enough was seen of it, and each finer one scales what it has from the coarser by how
much oftener or less often than that it was used.

What a state is worth at its age is the most uses per second that holding it from here on can bring,
over all times for which it might be held (its Gittins index): one that is about to be used is worth
holding though nobody uses it at this moment, one whose time has passed is not.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import mul
from typing import Final, TypeAlias

Kind: TypeAlias = tuple[Hashable, ...]

_PER_OCTAVE: Final = 2
#: Steps of age, to half a year.
STEPS: Final = 23 * _PER_OCTAVE
#: The age at which each step begins, and the last one ends: from 2 s on in parts of octaves.
_EDGES: Final[tuple[float, ...]] = (
    0.0,
    *(2.0 ** (1 + step / _PER_OCTAVE) for step in range(STEPS)),
)
_WIDTHS: Final = tuple(end - begin for begin, end in pairwise(_EDGES))
#: Uses per second times the age, before anything was seen.
_GUESS: Final = 0.1
#: Uses' worth of the coarser kind that a finer one begins with; at each step of age.
_PRIOR: Final = 20.0
_BENT_PRIOR: Final = 50.0
#: Trials over which what was seen fades to 1/e, and after how many it is looked at anew.
_MEMORY: Final = 20_000
_FADED: Final = 1000
_LOOKED: Final = 200
_FEW: Final = 20


def step_of(age_s: float) -> int:
    """The step of age that `age_s` falls on."""
    if age_s < _EDGES[-2]:
        return bisect_right(_EDGES, age_s, 1) - 1
    return STEPS - 1 if age_s >= _EDGES[-2] else 0  # what is no number


def end_of(step: int) -> float:
    """The age at which a step ends; the last one never does."""
    return _EDGES[step + 1] if step < STEPS - 1 else math.inf


@dataclass(slots=True)
class _Seen:
    """Of one level of a kind, by step of age; both are weighted."""

    uses: list[float]
    held: list[float]  # seconds


@dataclass(frozen=True, slots=True)
class _Curve:
    """What follows from what was seen of a kind."""

    best: list[float]  # uses per second that holding on can bring, by step of age
    relative: float  # uses, against those that the common curve foretold


class Curves:
    """Uses per second, by kind and age; each observation weighs what a use spares."""

    def __init__(self) -> None:
        self._levels: dict[Hashable, _Seen] = {}
        self._paths: dict[Kind, tuple[_Seen, ...]] = {}
        self._known: dict[Kind, _Curve] = {}
        self._common: list[float] = []
        self._weight = 0.0
        self._ended = 0.0
        self._count = 0

    def waited(self, kind: Kind, from_s: float, to_s: float, weight: float) -> None:
        """A state of that kind was not used while its age went from `from_s` to `to_s`."""
        path = self._path(kind)
        for step in range(step_of(from_s), step_of(to_s) + 1):
            span = (min(to_s, end_of(step)) - max(from_s, _EDGES[step])) * weight
            if span > 0.0:
                for seen in path:
                    seen.held[step] += span

    def used(self, kind: Kind, age_s: float, weight: float) -> None:
        """It was used at that age."""
        step = step_of(age_s)
        for seen in self._path(kind):
            seen.uses[step] += weight

    def ended(self, weight: float) -> None:
        """A trial has ended, by a use or without."""
        self._weight += weight
        self._ended += 1.0
        self._count += 1
        if self._count % (_LOOKED if self._count >= _LOOKED else _FEW) == 0:
            self._known.clear()
        if self._count % _FADED == 0:
            self._fade(math.exp(-_FADED / _MEMORY))

    def best(self, kind: Kind, age_s: float) -> float:
        """The most uses per second that holding one of that age can bring; between steps in
        proportion, so that of two alike the older goes.
        """
        best = (self._known.get(kind) or self._curve(kind)).best
        step = step_of(age_s)
        here = best[step]
        if step == STEPS - 1 or not age_s > 0.0:
            return here
        return here + (age_s - _EDGES[step]) / _WIDTHS[step] * (best[step + 1] - here)

    def relative(self, kind: Kind) -> float:
        """How many times as often as the common curve says that kind is used."""
        return self._curve(kind).relative

    def _path(self, kind: Kind) -> tuple[_Seen, ...]:
        """What was seen of all, and of each level of `kind`."""
        path = self._paths.get(kind)
        if path is None:
            path = self._paths[kind] = tuple(map(self._of, ((), *kind)))
        return path

    def _of(self, level: Hashable) -> _Seen:
        return self._levels.setdefault(level, _Seen([0.0] * STEPS, [0.0] * STEPS))

    def _curve(self, kind: Kind) -> _Curve:
        if not self._known:
            self._common = self._shared()
        curve = self._known.get(kind)
        if curve is None:
            curve = self._known[kind] = self._learnt(kind)
        return curve

    @property
    def _mean_weight(self) -> float:
        return self._weight / self._ended if self._ended else 1.0

    def _shared(self) -> list[float]:
        """Uses per second over all kinds."""
        prior, seen = _PRIOR * self._mean_weight, self._of(())
        return [
            (uses + prior) / (held + prior * max(edge, 1.0) / _GUESS)
            for uses, held, edge in zip(seen.uses, seen.held, _EDGES, strict=False)
        ]

    def _learnt(self, kind: Kind) -> _Curve:
        prior, bent = _PRIOR * self._mean_weight, _BENT_PRIOR * self._mean_weight
        rates, relative = self._common, 1.0
        for place, level in enumerate(kind):
            seen = self._levels.get(level)
            if seen is None:
                break
            uses = sum(seen.uses) + prior
            scale = uses / (_foretold(seen, rates) + prior)
            relative *= uses / (_foretold(seen, self._common) * relative + prior)
            rates = [scale * rate for rate in rates]
            if place == 0:
                counted = zip(seen.uses, seen.held, rates, strict=True)
                rates = [(u + bent) / (held + bent / rate) for u, held, rate in counted]
        return _Curve(_best(rates), relative)

    def _fade(self, factor: float) -> None:
        self._weight *= factor
        self._ended *= factor
        for seen in self._levels.values():
            seen.uses = [factor * uses for uses in seen.uses]
            seen.held = [factor * held for held in seen.held]


def _foretold(seen: _Seen, rates: Sequence[float]) -> float:
    """Uses in the time that was waited."""
    return math.fsum(map(mul, seen.held, rates))


def _best(rates: Sequence[float]) -> list[float]:
    """The most uses per second held from the begin of each step on.

    From the last step backwards: it is worth holding on through the steps that follow as long as
    they bring more than those before them.
    """
    found = [0.0] * STEPS
    stretches: list[tuple[float, float, float]] = []  # nearest last: uses, seconds, left unused
    for step in range(STEPS - 1, -1, -1):
        uses = -math.expm1(-rates[step] * _WIDTHS[step])
        seconds, left = uses / rates[step], 1.0 - uses
        while stretches and stretches[-1][0] * seconds > uses * stretches[-1][1]:
            further, longer, rest = stretches.pop()
            uses, seconds, left = uses + left * further, seconds + left * longer, left * rest
        stretches.append((uses, seconds, left))
        found[step] = uses / seconds
    return found
