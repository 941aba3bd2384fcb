"""The yardstick: an eviction that knows the future.

What is dropped is what spares fewest tokens per request that it would have to wait for its next
use; what is never asked for again goes first. No policy without that knowledge can be expected to
come near: what it shows is how much is left to be had.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from statestore.entry import Entry
from statestore.eviction import make_policy
from statestore.keys import StateKey
from statestore.simulate.admission import Admission
from statestore.simulate.replay import Result, replay
from statestore.simulate.trace import Request

NAME: Final = "oracle"


class _Foresight:
    """A shelf over requests that are known beforehand. Evicting looks at every entry."""

    def __init__(self, requests: Sequence[Request], budget_states: int | None) -> None:
        self.evictions = 0
        self._budget = budget_states
        self._at = -1  # the request that is being served
        self._kept: dict[StateKey, tuple[int, int]] = {}  # tokens spared, request of the next use
        self._entries: dict[StateKey, Entry] = {}
        self._uses: dict[StateKey, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            for key in request.keys:
                self._uses[key].append(number)
        self._never = len(requests)
        self._served = [number for number, request in enumerate(requests) if request.keys]
        self._turn = 0

    @property
    def kept(self) -> int:
        """Entries kept."""
        return len(self._kept)

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:  # noqa: ARG002
        """The first of `keys` that is kept; what of them is kept waits for its next use."""
        self._at = self._served[self._turn]
        self._turn += 1
        for key in keys:
            if key in self._kept:
                self._kept[key] = (self._kept[key][0], self._next_use(key))
        return next((self._entries[key] for key in keys if key in self._kept), None)

    def put(self, entry: Entry, now: float) -> bool:  # noqa: ARG002
        """Keep `entry`, if it is not itself what is worth least."""
        key = entry.key
        self._kept[key] = (key.n_tokens - entry.ancestor_tokens, self._next_use(key))
        self._entries[key] = entry
        if self._budget is not None and len(self._kept) > self._budget:
            worst = min(self._kept, key=self._worth)
            del self._kept[worst], self._entries[worst]
            self.evictions += 1
        return True

    def hit(self, entry: Entry, now: float) -> None:
        """It is known already."""

    def _next_use(self, key: StateKey) -> int:
        uses = self._uses[key]
        place = bisect_right(uses, self._at)
        return uses[place] if place < len(uses) else self._never

    def _worth(self, key: StateKey) -> float:
        spared, used_at = self._kept[key]
        return 0.0 if used_at == self._never else spared / (used_at - self._at)


def replay_clairvoyant(
    requests: Sequence[Request],
    admission: Admission,
    budget_states: int | None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """What could be had of `requests` at best, by this rule; costs the budget for each put."""
    shelf = _Foresight(requests, budget_states)
    result = replay(requests, make_policy("lru"), admission, budget_states, shelf, progress)
    result.policy = NAME
    return result
