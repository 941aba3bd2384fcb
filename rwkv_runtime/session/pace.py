"""How fast this engine computes and this store hands out states, measured as they run.

The median of the last few: one slow call, on a machine that was busy elsewhere, changes no
decision. All states of an engine are of one size, so a fetch is measured whole, not by the byte.

Before anything is measured, the engine counts as slow and the store as fast. So at first states are
stored rather than not, and another's computing is waited for rather than repeated: a process that
has not computed yet has no reason to believe that it would be faster.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Final

#: Before the first chunk: a big model on a small, busy machine.
UNMEASURED_TOKEN_S: Final = 1 / 20
#: Before the first fetch: a few MiB from a disk or a network nearby.
UNMEASURED_FETCH_S: Final = 0.005
_KEPT: Final = 9


@dataclass(frozen=True, slots=True)
class Costs:
    """What something takes, in seconds."""

    token_s: float = UNMEASURED_TOKEN_S  # to compute one token
    fetch_s: float = UNMEASURED_FETCH_S  # to look up, read and decode one state


class Pace:
    """Running measurements. Safe to use from several threads.

    Args:
        chunk: tokens of a whole chunk. Much shorter ones cost more for each token, and count only
            while no other was measured.
    """

    def __init__(self, chunk: int) -> None:
        self._whole = (chunk + 1) // 2
        self._short: deque[float] = deque(maxlen=_KEPT)
        self._long: deque[float] = deque(maxlen=_KEPT)
        self._fetches: deque[float] = deque(maxlen=_KEPT)

    @property
    def chunk_s(self) -> float:
        """Seconds that a whole chunk took; 0 before the first."""
        tokens = self._long.copy()
        return 2 * self._whole * median(tokens) if tokens else 0.0

    def computed(self, tokens: int, seconds: float) -> None:
        """A chunk was computed."""
        (self._long if tokens >= self._whole else self._short).append(seconds / tokens)

    def fetched(self, seconds: float) -> None:
        """A state was fetched."""
        self._fetches.append(seconds)

    @property
    def costs(self) -> Costs:
        """As measured so far."""
        tokens = self._long.copy() or self._short.copy()
        fetches = self._fetches.copy()
        return Costs(
            median(tokens) if tokens else UNMEASURED_TOKEN_S,
            median(fetches) if fetches else UNMEASURED_FETCH_S,
        )
