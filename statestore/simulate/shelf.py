"""Entries of equal size in the order of a policy's scores, or as it ranks them: what a backend with
a budget does, without the backend.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Final

from statestore.backends.headroom import SPARE
from statestore.backends.wrappers.budget import Budget
from statestore.entry import Entry
from statestore.eviction import Policy, Verdict
from statestore.eviction.policy import STOP_S, lowest, sampled, transient
from statestore.keys import StateKey

_SEED: Final = 1  # of the dice: a replay's result is the same every time


class OwnShelf:
    """At most `budget_states` entries. As in a backend, what has expired takes up room until others
    need it; then passing stops go, then what the policy ranks lowest of a sample, or scored lowest.
    """

    def __init__(self, policy: Policy, budget_states: int | None) -> None:
        self.evictions = 0
        self._policy = policy
        self._budget = budget_states
        self._slack = Budget().slack_bytes(budget_states or 0, 1)
        self._age = 0.0
        self._entries: dict[bytes, Entry] = {}
        self._expired: dict[bytes, Entry] = {}  # the longest expired first
        self._order: list[tuple[float, int, bytes]] = []  # with what has been touched since
        self._passing: deque[tuple[float, bytes]] = deque()  # when which stops are to expire
        self._turn = count()
        self._digests: list[bytes] = []  # of the entries, to draw from
        self._places: dict[bytes, int] = {}  # of each in `_digests`
        self._dice = random.Random(_SEED)  # noqa: S311 - not a secret

    @property
    def kept(self) -> int:
        """Entries kept."""
        return len(self._entries)

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is kept."""
        self._expire(now)
        found = next((e for key in keys if (e := self._entries.get(key.digest))), None)
        self._policy.seen(keys, found, now)
        return found

    def put(self, entry: Entry, now: float) -> bool:
        """Keep `entry`, once there is room. A passing stop takes nobody's place."""
        held = len(self._entries) + len(self._expired)
        digest = entry.key.digest
        expires_at = entry.expires_at
        if transient(entry):
            if self._budget is not None and held >= SPARE * self._budget:
                return False
            expires_at = now + STOP_S
            self._passing.append((expires_at, digest))
        if self._budget is not None and held >= self._budget:
            self._make_room(self._budget - self._slack - 1, now)
        self._expired.pop(digest, None)
        verdict = self._policy.put(entry, self._age, now)
        self._place(entry, verdict, entry.hits, now, expires_at)
        return True

    def hit(self, entry: Entry, now: float) -> None:
        """Score it anew; a stop passes no longer."""
        verdict = self._policy.hit(entry, self._age, now)
        self._place(entry, verdict, entry.hits + 1, now, None)

    def _place(
        self, entry: Entry, verdict: Verdict, hits: int, used_at: float, expires_at: float | None
    ) -> None:
        digest, score = entry.key.digest, verdict.score
        memo = entry.memo if verdict.memo is None else verdict.memo
        if digest not in self._entries:
            self._places[digest] = len(self._digests)
            self._digests.append(digest)
        self._entries[digest] = replace(
            entry, hits=hits, used_at=used_at, expires_at=expires_at, score=score, memo=memo
        )
        if self._policy.judge is None or score < 0.0:
            heapq.heappush(self._order, (score, next(self._turn), digest))

    def _take(self, digest: bytes) -> Entry:
        place, last = self._places.pop(digest), self._digests.pop()
        if last != digest:
            self._digests[place] = last
            self._places[last] = place
        return self._entries.pop(digest)

    def _expire(self, now: float) -> None:
        """Stops that nobody came back to in time are found no more."""
        while self._passing and self._passing[0][0] <= now:
            at, digest = self._passing.popleft()
            entry = self._entries.get(digest)
            if entry is not None and entry.expires_at == at:
                self._expired[digest] = self._take(digest)
                self.evictions += 1

    def _make_room(self, target: int, now: float) -> None:
        """What has expired goes, then the lowest, until `target` are left."""
        excess = len(self._entries) + len(self._expired) - max(target, 0)
        while excess > 0 and self._expired:
            del self._expired[next(iter(self._expired))]
            excess -= 1
        while excess > 0 and self._evict_lowest():
            excess -= 1
        if excess > 0:
            self._evict_judged(excess, now)

    def _evict_lowest(self) -> bool:
        """The lowest goes; ``False``: what is left is for the policy to judge."""
        while self._order:
            score, _, digest = heapq.heappop(self._order)
            entry = self._entries.get(digest)
            if entry is not None and entry.score == score:
                self._take(digest)
                self._age = max(self._age, score)
                self.evictions += 1
                return True
        return False

    def _evict_judged(self, excess: int, now: float) -> None:
        judge = self._policy.judge
        assert judge is not None
        drawn = self._dice.sample(self._digests, min(sampled(excess), len(self._digests)))
        entries = [self._entries[digest] for digest in drawn]
        for place in lowest(entries, judge(entries, now), excess):
            self._take(drawn[place])
            self.evictions += 1
