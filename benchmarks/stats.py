"""What every benchmark reports: median, p90 and p99 of repeated measurements, and their ratio to a
peer's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of repeated runs of one thing."""

    median_s: float
    p90_s: float
    p99_s: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """Summarise measurements."""
        median, p90, p99 = np.percentile(np.asarray(seconds), [50, 90, 99])
        return cls(float(median), float(p90), float(p99), len(seconds))

    def milliseconds(self) -> list[str]:
        """Median, p90, p99 for a table."""
        return [f"{value * 1e3:.2f}" for value in (self.median_s, self.p90_s, self.p99_s)]


def alternate(
    runs: int, things: dict[str, Callable[[], float]], *, warmup: int = 2
) -> dict[str, Timing]:
    """Run the things in turn, so that a drifting machine is the same for all; each returns its
    seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in things}
    for count in range(warmup + runs):
        for name, thing in things.items():
            took = thing()
            if count >= warmup:
                seconds[name].append(took)
    return {name: Timing.of(values) for name, values in seconds.items()}


def timed(thing: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    thing()
    return time.perf_counter() - began
