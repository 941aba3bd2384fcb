"""A log of what can go wrong in each request: told once, then once a minute.

A place that is down fails every request; one line says so, and metrics count the rest. What is not
told is logged for debugging.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable
from typing import Final

EVERY_S: Final = 60.0


class Complaints:
    """Warnings by subject. Threads may share it; there is no lock that a fork could leave shut.

    Args:
        log: where they go.
        monotonic: seconds.
    """

    def __init__(
        self, log: logging.Logger, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._monotonic = monotonic
        self._told: dict[Hashable, tuple[float, int]] = {}  # when, and how many were not since

    def add(self, subject: Hashable, message: str, *arguments: object) -> None:
        """Something went wrong with `subject`, one of a few; the rest is as logging wants it."""
        now = self._monotonic()
        told_at, untold = self._told.get(subject, (-math.inf, 0))
        if now - told_at < EVERY_S:
            self._told[subject] = told_at, untold + 1
            self._log.debug(message, *arguments)
            return
        self._told[subject] = now, 0
        more = f" (and {untold} times more since this was last said)" if untold else ""
        self._log.warning("%s%s", message % arguments, more)
