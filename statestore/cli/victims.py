"""What goes to make room, in which order: the stored scores', or those that a policy would give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from enum import IntEnum
from operator import attrgetter
from typing import Final, NamedTuple

from statestore.cli.render import counted, size
from statestore.cli.selecting import Selection
from statestore.entry import Entry, Status
from statestore.eviction import DEFAULT, POLICIES, Policy, make_policy
from statestore.eviction.policy import HOLD_S
from statestore.keys import StateKey
from statestore.lanes import in_lanes
from statestore.store import StateStore

#: Policies that know an entry's worth by the entry alone.
BY_ENTRY: Final = tuple(name for name in POLICIES if name != DEFAULT)

_LANES: Final = 8  # removals at a time


class Rank(IntEnum):
    """What goes first, as with `Backend.evict`."""

    EXPIRED = 0
    QUARANTINED = 1
    READY = 2


class Victim(NamedTuple):
    """A state that goes."""

    rank: Rank
    score: float  # of what has expired, when it did
    key: StateKey
    blob_bytes: int

    @classmethod
    def of(cls, entry: Entry, score: float, now: float) -> Victim:
        """What is needed of an entry: a million of them shall fit."""
        if entry.expires_at is not None and entry.expires_at <= now:
            return cls(Rank.EXPIRED, entry.expires_at, entry.key, entry.blob_bytes)
        rank = Rank.READY if entry.status is Status.READY else Rank.QUARANTINED
        return cls(rank, score, entry.key, entry.blob_bytes)


def choose(
    store: StateStore, selection: Selection, to_bytes: int | None, policy: str | None
) -> list[Victim]:
    """Those of the selection that go, in order, until what was selected comes to `to_bytes`.

    Without `to_bytes` all of them. Pinned ones count and stay, unless it is them who were asked
    for.
    """
    now = store.now()
    score = attrgetter("score") if policy is None else _scores(store, selection, policy)
    total = 0
    victims: list[Victim] = []
    for entry in selection.entries(store):
        total += entry.blob_bytes
        if not entry.pinned or selection.where.pinned:
            victims.append(Victim.of(entry, score(entry), now))
    victims.sort()
    return victims if to_bytes is None else list(_until(victims, total, to_bytes))


def remove(store: StateStore, victims: Iterable[Victim], reason: str) -> Iterator[Victim]:
    """Remove them; those that were still there, as they go."""

    def work(victim: Victim) -> Victim | None:
        return victim if store.backend.delete(victim.key, reason) else None

    return (gone for gone in in_lanes(victims, work, _LANES) if gone is not None)


def _until(victims: Sequence[Victim], total: int, to_bytes: int) -> Iterator[Victim]:
    for victim in victims:
        if total <= to_bytes:
            return
        total -= victim.blob_bytes
        yield victim


def _scores(store: StateStore, selection: Selection, name: str) -> Callable[[Entry], float]:
    """What the policy would have written at each entry's last use, had it been here all along."""
    policy = make_policy(name)
    now, age = store.now(), store.usage().age
    hold_s = max(now - age, HOLD_S) if age > 0 else HOLD_S
    for entry in selection.entries(store):  # so that it knows what common worth is
        _put(policy, entry, hold_s)

    def score(entry: Entry) -> float:
        if entry.hits == 0:
            return _put(policy, entry, hold_s)
        before = replace(entry, hits=entry.hits - 1)
        return policy.hit(before, entry.used_at - hold_s, entry.used_at).score

    return score


def _put(policy: Policy, entry: Entry, hold_s: float) -> float:
    return policy.put(entry, entry.created_at - hold_s, entry.created_at).score


def still(
    store: StateStore,
    selection: Selection,
    victims: Sequence[Victim],
    to_bytes: int | None = None,
    policy: str | None = None,
) -> list[Victim]:
    """Those that were not pinned or used while a person thought it over."""
    agreed = {victim.key for victim in victims}
    again = choose(store, selection, to_bytes, policy)
    return [victim for victim in again if victim.key in agreed]


def bytes_of(victims: Sequence[Victim]) -> int:
    """Of all their blobs."""
    return sum(victim.blob_bytes for victim in victims)


def said(victims: Sequence[Victim]) -> str:
    """So many states, and their bytes."""
    return f"{counted(len(victims), 'state')} ({size(bytes_of(victims))})"
