"""Making room: the lowest scores over all shards go, and no more than has to.

In rounds of two steps. First every shard tells its total and its lowest entries; from these `plan`
chooses. Then each shard removes what was chosen there, in that order, as long as its own total is
above what the plan leaves it (its *floor*), and passes over what was touched, pinned, replaced or
removed meanwhile.

**Several at once** choose the same entries, since the choice follows from what is stored; whoever
comes second finds them gone. On one server an eviction never takes more than it has to. In a
Cluster two rounds that meet may take too much by what others delete, between the steps of one
round, in shards that the round removes nothing from: a few entries, never the same budget twice.

**Readers.** Parts of what was evicted are not removed but expire in a moment (`LINGER_MS`, and
a second for each 20 MiB): who has begun to read ends well. The server's memory is free after that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Final, NamedTuple

from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import SHARD, Command, call, departed_kept
from statestore.entry import Evicted

LINGER_MS: Final = 1000
LINGER_PART_MS: Final = 50
LINGER_MOST_MS: Final = 60_000

_BATCH: Final = 64  # entries that one shard removes in one step, which takes 1 to 3 ms
_ROUNDS: Final = 1000  # more mean that others keep changing what was chosen

#: ARGV: base, '', how many, now, and a namespace if it is about one. The shard's blob bytes,
#: whether it may have further entries, and of each of the lowest: 0 if expired, 1 if quarantined,
#: else 2, score, blob, bytes. What the orders name and is not there (the server evicted it), or
#: names no blob of its own, is struck off. Of what has expired the first are looked at, whoever's.
LOWEST: Final = (
    SHARD
    + """
local wanted, now, namespace = tonumber(ARGV[3]), ARGV[4], ARGV[5]
local found, stale, told = {}, 0, {}
local FIELDS = {'status', 'score', 'blob', 'blob_bytes', 'pinned', 'expires_at', 'namespace'}
local function strike(id, key)
  stale = stale + 1
  local before, place = weigh(key), place_of(key, id)
  redis.call('UNLINK', key)
  if place then
    account(key, before)
  end
  for _, order in ipairs({'used', 'barred', 'order', 'expiry'}) do
    redis.call('ZREM', base .. order, id)
  end
  if place then
    redis.call('ZREM', base .. 'ranks', place.rank)
    redis.call('ZREM', base .. 'tokens', place.tokens)
  end
end
local function lowest()
  if namespace then
    return redis.call('ZRANGEBYLEX', base .. 'ranks', '[' .. namespace .. '\\0',
      '(' .. namespace .. '\\1', 'LIMIT', 0, wanted)
  end
  local ids = redis.call('ZRANGE', base .. 'barred', 0, wanted - 1)
  if #ids < wanted then
    for _, id in ipairs(redis.call('ZRANGE', base .. 'order', 0, wanted - #ids - 1)) do
      ids[#ids + 1] = id
    end
  end
  return ids
end
local function tell(class, id, f)
  if not told[id] then
    told[id] = true
    found[#found + 1] = {class, f[2] or '', f[3], f[4] or ''}
  end
end
local lapsed = redis.call('ZRANGEBYSCORE', base .. 'expiry', '-inf', now, 'LIMIT', 0, wanted)
for _, id in ipairs(lapsed) do
  local key = base .. 'entry:' .. id
  local f = redis.call('HMGET', key, unpack(FIELDS))
  if (f[3] or ''):sub(1, 64) ~= id then
    strike(id, key)
  elseif f[5] ~= '1' and expired(f[6] or '', now) and (not namespace or f[7] == namespace) then
    tell(0, id, f)
  end
end
local members = lowest()
for _, member in ipairs(members) do
  local id = member:sub(-64)
  local key = base .. 'entry:' .. id
  local f = redis.call('HMGET', key, unpack(FIELDS))
  if (f[3] or ''):sub(1, 64) ~= id then
    strike(id, key)
    redis.call('ZREM', base .. 'ranks', member)
  elseif f[5] ~= '1' and (member == id or place_of(key, id).rank == member) then
    tell(f[1] == 'quarantined' and 1 or 2, id, f)
  else
    stale = stale + 1
    for _, order in ipairs({'barred', 'order', 'ranks'}) do
      redis.call('ZREM', base .. order, member)
    end
  end
end
local whose = namespace and ':' .. namespace or ''
local total = redis.call('HGET', base .. 'totals', 'blob_bytes' .. whose) or '0'
return {total, (stale > 0 or #members == wanted) and 1 or 0, found}
"""
)

#: ARGV: base, '', floor, the namespace's name with ':' before it or '', now, how many removals to
#: remember, ms that parts linger, ms for each part, ms at most; score and blob of each entry. How
#: many went, their bytes and tokens.
EVICT: Final = (
    SHARD
    + """
local floor, whose, at, keep = tonumber(ARGV[3]), ARGV[4], ARGV[5], ARGV[6]
local function let_expire(blob, count)
  local left = math.min(ARGV[9], ARGV[7] + ARGV[8] * count)
  for index = 0, tonumber(count) - 1 do
    redis.call('PEXPIRE', names_part(blob, index), left)
  end
  return tonumber(count)
end
local gone, bytes, tokens = 0, 0, 0
for i = 10, #ARGV, 2 do
  local score, blob = ARGV[i], ARGV[i + 1]
  local id = blob:sub(1, 64)
  local key = base .. 'entry:' .. id
  local f = redis.call('HMGET', key, 'score', 'blob', 'pinned', 'blob_bytes', 'status',
    'expires_at', 'n_tokens')
  if (f[1] or '') == score and f[2] == blob and f[3] ~= '1' then
    local size, lapsed = number(f[4]), expired(f[6] or '', at)
    local total = tonumber(redis.call('HGET', base .. 'totals', 'blob_bytes' .. whose) or 0)
    if size > 0 and total <= floor then
      break
    end
    remove(key, id, lapsed and 'expired' or 'evicted', at, keep, let_expire)
    gone, bytes, tokens = gone + 1, bytes + size, tokens + number(f[7])
    local age = tonumber(redis.call('HGET', base .. 'totals', 'age') or 0)
    if f[5] == 'ready' and not lapsed and number(score) > age then
      redis.call('HSET', base .. 'totals', 'age', score)
    end
  end
end
return {gone, bytes, tokens}
"""
)


class Victim(NamedTuple):
    """An entry that may go; they sort as they go."""

    rank: int  # 0: expired, 1: quarantined, 2: ready
    score: float
    blob: str
    blob_bytes: int
    score_text: str


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard told: its total, and its lowest entries."""

    total: int
    more: bool  # there may be others behind them
    lowest: Sequence[Victim]

    @classmethod
    def of(cls, total: bytes, more: int, found: list[tuple[int, bytes, bytes, bytes]]) -> Shard:
        """From a reply of `LOWEST`."""
        victims = [
            Victim(rank, _number(score), blob.decode(), int(_number(size)), score.decode())
            for rank, score, blob, size in found
        ]
        return cls(int(total), bool(more), sorted(victims))


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


def _hidden(shards: Sequence[Shard], to_bytes: int) -> bool:
    """Whether something has to go that may lie behind what was struck off."""
    more = any(shard.more and not shard.lowest for shard in shards)
    return more and sum(shard.total for shard in shards) > to_bytes


def _in_order(shards: Sequence[Shard]) -> Iterator[tuple[Victim, int]]:
    return merge(
        *([(victim, place) for victim in shard.lowest] for place, shard in enumerate(shards))
    )


class Eviction:
    """One eviction; `run` does it.

    Args:
        server: where.
        keyspace: the names there.
        now: dates the removals.
        namespace: whose entries; ``None``: anybody's.
    """

    def __init__(
        self, server: Server, keyspace: Keyspace, now: float, namespace: str | None
    ) -> None:
        self._server = server
        self._bases = tuple(keyspace.bases())
        self._now = repr(float(now))
        self._namespace = namespace

    def run(self, to_bytes: int, limit: int) -> Evicted:
        """Do it; what went. Raises as `Server.run`."""
        entries = size = tokens = 0
        for _ in range(_ROUNDS):
            if entries >= limit:
                break
            shards = self._look(limit - entries)
            shares = plan(shards, to_bytes, limit - entries)
            if not shares and not _hidden(shards, to_bytes):
                break
            for gone in self._server.run([self._removal(*one) for one in shares.items()]):
                entries, size, tokens = entries + gone[0], size + gone[1], tokens + gone[2]
        return Evicted(entries, size, tokens)

    def _look(self, limit: int) -> list[Shard]:
        """The lowest of every shard, some more than its share of `limit`."""
        wanted = min(_BATCH, limit, max(8, 4 * limit // len(self._bases)))
        about = () if self._namespace is None else (self._namespace,)
        looks = [call(LOWEST, base, "", wanted, self._now, *about) for base in self._bases]
        return [Shard.of(*reply) for reply in self._server.run(looks)]

    def _removal(self, place: int, share: Share) -> Command:
        base = self._bases[place]
        whose = "" if self._namespace is None else f":{self._namespace}"
        linger = (LINGER_MS, LINGER_PART_MS, LINGER_MOST_MS)
        pairs = [piece for one in share.victims for piece in (one.score_text, one.blob)]
        kept = departed_kept(len(self._bases))
        return call(EVICT, base, "", share.floor, whose, self._now, kept, *linger, *pairs)
