"""Many processes over one store: each lookup is some worker's, and so is what is put after it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from statestore.entry import Entry
from statestore.eviction import Judge, Policy, Verdict, make_policy
from statestore.keys import StateKey

_SEED: Final = 1

Thing = TypeVar("Thing")


class Dealt(Generic[Thing]):
    """One of several, drawn anew by `deal`; the same ones in every run."""

    def __init__(self, things: Sequence[Thing], seed: int = _SEED) -> None:
        self._things = things
        self._dice = random.Random(seed)  # noqa: S311 - not a secret
        self.one = things[0]

    def deal(self) -> Thing:
        """Draw; it is `one` until the next time."""
        if len(self._things) > 1:
            self.one = self._dice.choice(self._things)
        return self.one


class WorkersPolicy:
    """The policies of so many processes, each of which sees the requests that it is dealt."""

    def __init__(self, name: str, workers: int, seed: int = _SEED) -> None:
        self.name = name
        self._dealt = Dealt([make_policy(name) for _ in range(workers)], seed)

    @property
    def judge(self) -> Judge | None:
        """That of the worker whose turn it is."""
        return self._dealt.one.judge

    def seen(self, keys: Sequence[StateKey], found: Entry | None, now: float) -> None:
        """A lookup: the next worker's."""
        self._dealt.deal().seen(keys, found, now)

    def put(self, entry: Entry, age: float, now: float) -> Verdict:
        """That worker's."""
        return self._dealt.one.put(entry, age, now)

    def hit(self, entry: Entry, age: float, now: float) -> Verdict:
        """That worker's."""
        return self._dealt.one.hit(entry, age, now)


def make_workers(name: str, workers: int = 1) -> Policy:
    """The policy of that name in so many processes. Raises `SettingsError` for a name of none."""
    return make_policy(name) if workers == 1 else WorkersPolicy(name, workers)
