"""Replays requests against a store that is only its entries: what is found, stored, dropped."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final, Protocol

from statestore.entry import Entry, Role
from statestore.eviction import Policy
from statestore.keys import StateKey
from statestore.simulate.admission import Admission
from statestore.simulate.trace import Request

HOUR_S: Final = 3600.0
#: A replay's clock begins here, as if its first request came now and not in 1970.
BEGAN: Final = 1_700_000_000.0

_NOTHING: Final = bytes(32)


@dataclass(slots=True)
class Tally:
    """What came of some requests."""

    requests: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0
    states_written: int = 0
    evictions: int = 0


@dataclass(slots=True)
class Result:
    """What came of a replay; `hours` are tallies by the hour from the first request."""

    policy: str
    admission: str
    budget_states: int | None  # ``None``: unlimited
    total: Tally = field(default_factory=Tally)
    states_kept: int = 0
    hours: list[Tally] = field(default_factory=list)

    @property
    def hit_token_share(self) -> float:
        """Tokens found, of all that were asked; 0.0 to 1.0."""
        return self.total.hit_tokens / max(self.total.input_tokens, 1)

    def tallies(self, since_s: float) -> tuple[Tally, Tally]:
        """Where to count what happens `since_s` seconds after the first request."""
        while len(self.hours) <= since_s // HOUR_S:
            self.hours.append(Tally())
        return self.total, self.hours[int(since_s // HOUR_S)]


class Shelf(Protocol):
    """Where a replay keeps entries."""

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys`, deepest first, that is kept."""

    def put(self, entry: Entry, now: float) -> None:
        """Keep `entry`; others go for it."""

    def hit(self, entry: Entry, now: float) -> None:
        """`entry` was used."""

    @property
    def kept(self) -> int:
        """Entries kept."""

    @property
    def evictions(self) -> int:
        """Entries that went so far."""


class ScoredShelf:
    """Entries of equal size in the order of a policy's scores, at most `budget_states` of them."""

    def __init__(self, policy: Policy, budget_states: int | None) -> None:
        self.evictions = 0
        self._policy = policy
        self._budget = budget_states
        self._age = 0.0
        self._entries: dict[bytes, Entry] = {}
        self._order: list[tuple[float, int, bytes]] = []  # with what has been touched since
        self._turn = count()

    @property
    def kept(self) -> int:
        """Entries kept."""
        return len(self._entries)

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is kept."""
        found = next((e for key in keys if (e := self._entries.get(key.digest))), None)
        self._policy.seen(keys, found, now)
        return found

    def put(self, entry: Entry, now: float) -> None:
        """Keep `entry`, once there is room."""
        while self._budget is not None and len(self._entries) >= self._budget:
            self._evict()
        self._place(entry, self._policy.put(entry, self._age, now))

    def hit(self, entry: Entry, now: float) -> None:
        """Score it anew."""
        score = self._policy.hit(entry, self._age, now)
        self._place(replace(entry, hits=entry.hits + 1, used_at=now), score)

    def _place(self, entry: Entry, score: float) -> None:
        digest = entry.key.digest
        self._entries[digest] = replace(entry, score=score)
        heapq.heappush(self._order, (score, next(self._turn), digest))

    def _evict(self) -> None:
        while True:
            score, _, digest = heapq.heappop(self._order)
            entry = self._entries.get(digest)
            if entry is not None and entry.score == score:
                del self._entries[digest]
                self._age = max(self._age, score)
                self.evictions += 1
                return


def replay(
    requests: Iterable[Request],
    policy: Policy,
    admission: Admission,
    budget_states: int | None,
    shelf: Shelf | None = None,
) -> Result:
    """What `policy` and `admission` make of `requests`, which come ordered by time.

    Args:
        requests: see `trace`.
        policy: a new one: it learns.
        admission: a new one: it remembers what it saw.
        budget_states: states of equal size that fit; ``None``: all.
        shelf: where entries are kept, if not in this replay's own memory.
    """
    shelf = shelf or ScoredShelf(policy, budget_states)
    result = Result(policy.name, admission.name, budget_states)
    began: float | None = None
    for request in requests:
        began = request.time_s if began is None else began
        since_s = request.time_s - began
        evicted = shelf.evictions
        found, written = _serve(request, BEGAN + since_s, shelf, admission)
        for tally in result.tallies(since_s):
            tally.requests += 1
            tally.input_tokens += request.n_tokens
            tally.hit_tokens += found
            tally.states_written += written
            tally.evictions += shelf.evictions - evicted
    result.states_kept = shelf.kept
    return result


def _serve(request: Request, now: float, shelf: Shelf, admission: Admission) -> tuple[int, int]:
    """One request: tokens found, states stored."""
    if not request.keys:
        return 0, 0
    entry = shelf.longest(request.keys[::-1], now)
    tokens = 0 if entry is None else entry.key.n_tokens
    depth = 0 if entry is None else request.keys.index(entry.key) + 1
    if entry is not None:
        shelf.hit(entry, now)
    wanted = admission.stored(request.keys, depth)
    ancestor = tokens
    for place, role in wanted:
        key = request.keys[place]
        shelf.put(an_entry(key, role, ancestor, now), now)
        if role is not Role.SPARSE:  # such a one goes first and spares nobody its gain
            ancestor = key.n_tokens
    return tokens, len(wanted)


def an_entry(key: StateKey, role: Role, ancestor_tokens: int, now: float) -> Entry:
    """The entry of a state of one byte."""
    return Entry(
        key=key,
        namespace="default",
        fingerprint=_NOTHING,
        token_digest=_NOTHING,
        schema_id="simulated",
        role=role,
        blob=key.hex,
        blob_bytes=1,
        state_bytes=1,
        has_output=False,
        cost_s=0.0,
        created_at=now,
        used_at=now,
        ancestor_tokens=ancestor_tokens,
    )
