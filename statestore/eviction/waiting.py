"""Trials under way: each tells, as it grows older, how long it has waited in vain, and at its end
whether it was for a use. So a kind that nobody comes back to is known before its trials end.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from statestore.eviction.curves import STEPS, Curves, end_of, step_of
from statestore.eviction.trials import Trial

#: Trials that are moved on at a time, up to 17 microseconds each: behind an answer, and before it.
MOVED: Final = 16
MOVED_BEFORE: Final = 4
#: Steps of age that end, and the age at which.
_FROM_THE_OLDEST: Final = tuple((step, end_of(step)) for step in reversed(range(STEPS - 1)))


class Waiting:
    """Brings what trials wait for into `curves`."""

    def __init__(self, curves: Curves) -> None:
        self._curves = curves
        self._by_step: list[deque[Trial]] = [deque() for _ in range(STEPS)]

    def __len__(self) -> int:
        return sum(map(len, self._by_step))

    def begin(self, trial: Trial) -> None:
        """It waits from now on."""
        self._by_step[0].append(trial)

    def advance(self, now: float, most: int = MOVED) -> None:
        """Note what they have waited through by `now`, the oldest first; of many no more than
        `most`, so that the first request of a morning does not pay for the night.
        """
        left = most
        for step, end_s in _FROM_THE_OLDEST:
            trials = self._by_step[step]
            while trials and now - trials[0].began >= end_s:
                if left == 0:
                    return
                left -= 1
                self._move(trials.popleft(), step, now)

    def end(self, trial: Trial, at: float, *, used: bool) -> None:
        """It ended at `at`, by a use or without."""
        if not trial.running:
            return
        trial.running = False
        age_s = max(at - trial.began, trial.waited_s)
        self._waited(trial, age_s)
        if used:
            self._curves.used(trial.kind, age_s, trial.tokens)
        self._curves.ended(trial.tokens)

    def _move(self, trial: Trial, step: int, now: float) -> None:
        """To the step that its age is on; those between are empty, as older ones went before."""
        if trial.running:
            reached = max(step_of(now - trial.began), step + 1)
            self._waited(trial, end_of(reached - 1))
            self._by_step[reached].append(trial)

    def _waited(self, trial: Trial, age_s: float) -> None:
        if age_s > trial.waited_s:
            self._curves.waited(trial.kind, trial.waited_s, age_s, trial.tokens)
            trial.waited_s = age_s
