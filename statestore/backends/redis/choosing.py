"""Who goes: chosen from what the shards told of their entries. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

from statestore.backends.fields import memo_of
from statestore.backends.redis.keyspace import DIGEST_DIGITS
from statestore.entry import Candidate, Role
from statestore.eviction.policy import Judge, lowest
from statestore.keys import StateKey

DRAWN: Final = 3  # the rank of what was drawn at random

#: Rank, score, blob and bytes; and of one that was drawn what it is judged by.
Told: TypeAlias = Any
_ROLES: Final = {role.value.encode(): role for role in Role}


class Victim(NamedTuple):
    """An entry that may go; they sort as they go."""

    rank: int  # 0: expired, 1: quarantined, 2: ready, 3: ready, as a judge ranked it
    score: float
    blob: str
    blob_bytes: int
    score_text: str

    @classmethod
    def of(cls, told: Told) -> Victim:
        """From a reply of `LOWEST`."""
        rank, score, blob, size = told[:4]
        return cls(rank, _number(score), blob.decode(), int(_number(size)), score.decode())


class Drawn(NamedTuple):
    """An entry of a sample, and what it is judged by."""

    victim: Victim
    candidate: Candidate

    @classmethod
    def of(cls, told: Told) -> Drawn:
        """From a reply of `LOWEST`."""
        victim = Victim.of(told)
        n_tokens, role, used_at, hits, ancestor_tokens, memo = told[4]
        candidate = Candidate(
            key=StateKey(bytes.fromhex(victim.blob[:DIGEST_DIGITS]), int(_number(n_tokens))),
            role=_ROLES.get(role, Role.PROMPT),
            blob_bytes=victim.blob_bytes,
            used_at=_number(used_at),
            hits=int(_number(hits)),
            ancestor_tokens=int(_number(ancestor_tokens)),
            memo=memo_of(memo),
        )
        return cls(victim, candidate)


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard told: its total, its lowest entries, and some drawn at random."""

    total: int
    more: bool  # there may be others behind them
    lowest: Sequence[Victim]
    drawn: Sequence[Drawn] = ()

    @classmethod
    def of(cls, total: bytes, more: int, found: list[Told]) -> Shard:
        """From a reply of `LOWEST`."""
        lowest = sorted(Victim.of(told) for told in found if told[0] < DRAWN)
        drawn = [Drawn.of(told) for told in found if told[0] == DRAWN]
        return cls(int(total), bool(more), lowest, drawn)


def judged(shards: Sequence[Shard], judge: Judge, now: float, count: int) -> list[Shard]:
    """The shards with those `count` that are ranked lowest of all drawn behind their lowest."""
    drawn = [(place, one) for place, shard in enumerate(shards) for one in shard.drawn]
    if not drawn:
        return list(shards)
    candidates = [one.candidate for _, one in drawn]
    ranks = judge(candidates, now)
    behind: list[list[Victim]] = [[] for _ in shards]
    for number in lowest(candidates, ranks, count):
        place, one = drawn[number]
        behind[place].append(one.victim._replace(score=ranks[number]))
    return [
        Shard(shard.total, False, [*shard.lowest, *chosen])
        for shard, chosen in zip(shards, behind, strict=True)
    ]


def _number(text: bytes) -> float:
    """What is no number, after a fault, counts as 0: such an entry goes like any other."""
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if math.isfinite(value) else 0.0


@dataclass(slots=True)
class Share:
    """What one shard is to remove, as long as its total is above `floor`."""

    floor: int
    victims: list[Victim]


def plan(shards: Sequence[Shard], to_bytes: int, limit: int) -> dict[int, Share]:
    """What goes from which shard, lowest first over all, until `to_bytes` are left, `limit` are
    chosen, or a shard's further entries would have to be known. Pure.

    A shard that told only what is not there any more may have lower ones: then nothing goes yet.
    """
    over = sum(shard.total for shard in shards) - to_bytes
    shares: dict[int, Share] = {}
    if any(shard.more and not shard.lowest for shard in shards):
        return shares
    for victim, place in islice(_in_order(shards), limit):
        if over <= 0:
            break
        share = shares.setdefault(place, Share(shards[place].total, []))
        share.victims.append(victim)
        share.floor -= victim.blob_bytes
        over -= victim.blob_bytes
        if over <= 0:
            share.floor -= over  # what the last one removes beyond need
        elif shards[place].more and len(share.victims) == len(shards[place].lowest):
            break
    return shares


def hidden(shards: Sequence[Shard], to_bytes: int) -> bool:
    """Whether something has to go that may lie behind what was struck off."""
    more = any(shard.more and not shard.lowest for shard in shards)
    return more and sum(shard.total for shard in shards) > to_bytes


def _in_order(shards: Sequence[Shard]) -> Iterator[tuple[Victim, int]]:
    return merge(
        *([(victim, place) for victim in shard.lowest] for place, shard in enumerate(shards))
    )
