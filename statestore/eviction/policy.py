"""What a policy is: the score of an entry, written when it is put and when it is used.

A score is a moment, in seconds since the epoch: until when the entry is worth its bytes, by what is
known now. The lowest goes first, so eviction reads an index and computes nothing; unless the policy
judges: then it ranks some entries at random at the moment when room is needed. All policies share
the axis of scores. So a store may change its policy, or be given a budget late, when its entries
hold scores of their last use: nothing has to be written anew, and nothing stays for ever.

**Ageing.** `age` is the highest score that was ever evicted. What lay unused until then went, so
``now - age`` is how long the store can hold an entry of common worth. One that is worth `m` times
as much may stay `m` times as long: its score is ``age + m * (now - age)``. With `m` = 1 throughout
that is LRU; with `m` in proportion to what a hit saves per byte it is GreedyDual-Size-Frequency,
measured in seconds. Worth is relative to the running mean of what was put, so that nothing is to be
tuned to a model, a tokenizer or a load.

**An age ahead of the clock.** A budget that was lowered evicts what was to stay for days, and so
may a host whose clock is fast. What is left then lies above the age, and newcomers begin there too:
by the clock alone they would go first, each before the next, until the clock has caught up.

A policy reads no clock and throws no dice. It may learn from what it is shown; what it learnt lives
in the process and is learnt anew by the next. What it knows of one entry it may write down with the
score, as a memo that every process finds there; one that it cannot read is as none.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from statestore.entry import Candidate, Entry, Role
from statestore.keys import StateKey

#: Seconds taken for ``now - age`` where nothing was evicted yet.
HOLD_S: Final = 60.0
#: Added to the score of what is only passing by; lower than any moment.
TRANSIENT: Final = -1e11
#: Seconds after which a passing stop that nobody came back to has served, room or not.
STOP_S: Final = 1000.0
#: Seconds that common worth is held beyond an age that is ahead of the clock.
AHEAD_S: Final = 3600.0
#: Entries judged for one that goes, and for each further one that goes with it.
_SAMPLE: Final = 64
_SAMPLE_EACH: Final = 16
#: How many times the common hold one entry may be given.
WORTH_LIMIT: Final = 64.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of an entry: the score, and what it wants to find there again."""

    score: float
    memo: str | None = None  # written with the score; ``None``: as it is


#: Of stored entries, drawn at random, what each is worth keeping at a moment; the lowest goes.
Judge: TypeAlias = Callable[[Sequence[Candidate | Entry], float], Sequence[float]]


class Policy(Protocol):
    """Gives scores. Safe to use from several threads, which may cost it an observation."""

    @property
    def name(self) -> str:
        """What it is chosen by."""

    @property
    def judge(self) -> Judge | None:
        """Ranks entries when room is needed; ``None``: what is written as their score does."""

    def seen(self, keys: Sequence[StateKey], found: Entry | None, now: float) -> None:
        """A lookup of `keys`, deepest first, returned `found`."""

    def put(self, entry: Entry, age: float, now: float) -> Verdict:
        """On an entry that is about to be stored."""

    def hit(self, entry: Entry, age: float, now: float) -> Verdict:
        """On an entry that was just used: `entry` is how it was before."""


def score(worth: float, age: float, now: float) -> float:
    """The moment until which `worth`, relative to the mean, is to be held."""
    if age > now:
        return age + AHEAD_S * min(worth, WORTH_LIMIT)
    hold_s = HOLD_S if age <= 0.0 else max(now - age, 1.0)
    return now + hold_s * (min(worth, WORTH_LIMIT) - 1.0)


def sampled(count: int) -> int:
    """How many entries, at random, to judge for `count` that are to go: one of each 16, but never
    less than 64.
    """
    return _SAMPLE + _SAMPLE_EACH * (count - 1)


def lowest(entries: Sequence[Candidate | Entry], ranks: Sequence[float], count: int) -> list[int]:
    """The places of the `count` that go first; of two that are ranked alike the same everywhere."""
    ranked = zip(ranks, (entry.key.digest for entry in entries), range(len(entries)), strict=True)
    return [place for _, _, place in heapq.nsmallest(count, ranked)]


def transient(entry: Entry) -> bool:
    """Whether it goes before all else: a stop along a long text that nobody came back to yet."""
    return entry.role is Role.SPARSE and entry.hits == 0


def gain_tokens(entry: Candidate | Entry) -> int:
    """Tokens that a hit spares: back to the nearest state that was stored when it came."""
    return max(entry.key.n_tokens - entry.ancestor_tokens, 1)


class Mean:
    """A running mean: of all values at first, then of the last thousand or so."""

    def __init__(self, memory: int = 1000) -> None:
        self.value = 0.0
        self._count = 0
        self._memory = memory

    def add(self, value: float) -> None:
        """Take a value into account."""
        self._count = min(self._count + 1, self._memory)
        self.value += (value - self.value) / self._count
