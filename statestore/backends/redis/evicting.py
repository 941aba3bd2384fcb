"""Making room: the lowest scores over all shards go, or what a judge ranks lowest of a sample from
all shards, and no more than has to.

In rounds of two steps. First every shard tells its total and its lowest entries, and some at random
for a judge; from these `plan` chooses. Then each shard removes what was chosen there, in that
order, as long as its own total is above what the plan leaves it (its *floor*), and passes over what
was touched, pinned, replaced or removed meanwhile. A shard whose slot a Cluster just moves is
passed over too.

**Several at once** choose the same entries, since the choice follows from what is stored; whoever
comes second finds them gone. Those who judge samples choose each its own. On one server an eviction
never takes more than it has to. In a Cluster two rounds that meet may take too much by what others
delete, between the steps of one round, in shards that the round removes nothing from: a few
entries, never the same budget twice; and who judges samples, what others have chosen in other
shards.

**Readers.** Parts of what was evicted are not removed but expire in a moment (`LINGER_MS`, and
a second for each 20 MiB): who has begun to read ends well. The server's memory is free after that.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from typing import Final

from statestore.backends.redis.choosing import Shard, Share, hidden, judged, plan
from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import SHARD, Command, call, departed_kept
from statestore.entry import Evicted
from statestore.eviction.policy import Judge, sampled

LINGER_MS: Final = 1000
LINGER_PART_MS: Final = 50
LINGER_MOST_MS: Final = 60_000

_BATCH: Final = 64  # entries that one shard removes in one step, which takes 1 to 3 ms
_JUDGED: Final = 32  # entries that go in one round where a sample is judged
_UNJUDGED: Final = 16  # entries told beside a sample
_LEAST: Final = 1  # drawn from each shard
_ROUNDS: Final = 1000  # more mean that others keep changing what was chosen
_NOTHING: Final = Shard(0, more=False, lowest=())  # of a slot that is just moved: it goes later

#: ARGV: base, '', how many, now, how many to draw, a seed for that, and a namespace if it is about
#: one. The shard's blob bytes, whether it may have further entries, and of each of the lowest: 0 if
#: expired, 1 if quarantined, else 2, score, blob, bytes. Where some are to be drawn, only what is
#: scored below 0 goes by its score; of each drawn: 3 and the same, and what it is judged by. What
#: the orders name and is not there (the server evicted it), or names no blob of its own, is struck
#: off. Of what has expired the first are looked at, whoever's.
LOWEST: Final = (
    SHARD
    + """
local wanted, now, draws, namespace = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), ARGV[7]
local found, stale, told = {}, 0, {}
local FIELDS = {'status', 'score', 'blob', 'blob_bytes', 'pinned', 'expires_at', 'namespace'}
local function look(id, key)
  local f = redis.call('HMGET', key, unpack(FIELDS))
  f[3] = blob_of(id, f[3])
  return f
end
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
  local f = look(id, key)
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
  local f = look(id, key)
  if (f[3] or ''):sub(1, 64) ~= id then
    strike(id, key)
    redis.call('ZREM', base .. 'ranks', member)
  elseif f[5] ~= '1' and (member == id or place_of(key, id).rank == member) then
    if draws == 0 or f[1] == 'quarantined' or number(f[2]) < 0 then
      tell(f[1] == 'quarantined' and 1 or 2, id, f)
    end
  else
    stale = stale + 1
    for _, order in ipairs({'barred', 'order', 'ranks'}) do
      redis.call('ZREM', base .. order, member)
    end
  end
end
local first, count = 0, redis.call('ZCARD', base .. 'order')
if namespace and draws > 0 then
  first = redis.call('ZLEXCOUNT', base .. 'ranks', '-', '(' .. namespace .. '\0')
  count = redis.call('ZLEXCOUNT', base .. 'ranks', '[' .. namespace .. '\0',
    '(' .. namespace .. '\1')
end
math.randomseed(tonumber(ARGV[6]))
for draw = 0, math.min(draws, count) - 1 do
  local place = first + (count <= draws and draw or math.random(0, count - 1))
  local member = redis.call('ZRANGE', base .. (namespace and 'ranks' or 'order'), place, place)[1]
  local id = (member or ''):sub(-64)
  local f = look(id, base .. 'entry:' .. id)
  if f[1] ~= 'quarantined' and f[5] ~= '1' and (f[3] or ''):sub(1, 64) == id and not told[id] then
    told[id] = true
    local by = redis.call('HMGET', base .. 'entry:' .. id, 'n_tokens', 'role', 'used_at', 'hits',
      'ancestor_tokens', 'memo')
    for i = 1, 6 do
      by[i] = by[i] or ''
    end
    found[#found + 1] = {3, f[2] or '', f[3], f[4] or '', by}
  end
end
local whose = namespace and ':' .. namespace or ''
local total = redis.call('HGET', base .. 'totals', 'blob_bytes' .. whose) or '0'
local more = stale > 0 or #members == wanted or (draws > 0 and count > draws)
return {total, more and 1 or 0, found}
"""
)

#: ARGV: base, '', floor, the namespace's name with ':' before it or '', now, how many removals to
#: remember, ms that parts linger, ms for each part, ms at most, 1 if the age is that of what
#: goes; score and blob of each entry. How many went, their bytes and tokens.
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
for i = 11, #ARGV, 2 do
  local score, blob = ARGV[i], ARGV[i + 1]
  local id = blob:sub(1, 64)
  local key = base .. 'entry:' .. id
  local f = redis.call('HMGET', key, 'score', 'blob', 'pinned', 'blob_bytes', 'status',
    'expires_at', 'n_tokens')
  if (f[1] or '') == score and blob_of(id, f[2]) == blob and f[3] ~= '1' then
    local size, lapsed = number(f[4]), expired(f[6] or '', at)
    local total = tonumber(redis.call('HGET', base .. 'totals', 'blob_bytes' .. whose) or 0)
    if size > 0 and total <= floor then
      break
    end
    remove(key, id, lapsed and 'expired' or 'evicted', at, keep, let_expire)
    gone, bytes, tokens = gone + 1, bytes + size, tokens + number(f[7])
    local age = tonumber(redis.call('HGET', base .. 'totals', 'age') or 0)
    if ARGV[10] == '1' and f[5] == 'ready' and not lapsed and number(score) > age then
      redis.call('HSET', base .. 'totals', 'age', score)
    end
  end
end
return {gone, bytes, tokens}
"""
)


def _further(shares: Iterable[Share], over: int) -> int:
    """How many entries like these come to `over` bytes; as many as one round takes at most."""
    sizes = [victim.blob_bytes for share in shares for victim in share.victims]
    mean_bytes = max(sum(sizes) / len(sizes), 1.0) if sizes else 1.0
    return min(max(math.ceil(over / mean_bytes), 1), _JUDGED)


class Eviction:
    """One eviction; `run` does it.

    Args:
        server: where.
        keyspace: the names there.
        now: dates the removals.
        namespace: whose entries; ``None``: anybody's.
        judge: ranks a sample; ``None``: the scores do.
    """

    def __init__(
        self,
        server: Server,
        keyspace: Keyspace,
        now: float,
        namespace: str | None,
        judge: Judge | None = None,
    ) -> None:
        self._server = server
        self._bases = tuple(keyspace.bases())
        self._now = float(now)
        self._namespace = namespace
        self._judge = judge

    def run(self, to_bytes: int, limit: int) -> Evicted:
        """Do it; what went. Raises as `Server.run`."""
        entries = size = tokens = 0
        wanted = 1  # to judge for
        for _ in range(_ROUNDS):
            if entries >= limit:
                break
            shards = self._look(limit - entries, wanted)
            shares = plan(shards, to_bytes, limit - entries)
            if not shares and not hidden(shards, to_bytes):
                break
            freed = 0
            removals = [self._removal(*one) for one in shares.items()]
            for gone in filter(None, self._server.run(removals, moving_ok=True)):
                entries, freed, tokens = entries + gone[0], freed + gone[1], tokens + gone[2]
            size += freed
            over = sum(shard.total for shard in shards) - to_bytes - freed
            if shares and over <= 0:
                break
            wanted = _further(shares.values(), over)
        return Evicted(entries, size, tokens)

    def _look(self, limit: int, wanted: int) -> list[Shard]:
        """The lowest of every shard, some more than its share of `limit`; of what is drawn, so many
        as are `wanted`.
        """
        shards = len(self._bases)
        judge = self._judge
        most = _BATCH if judge is None else _UNJUDGED
        lowest = min(most, limit, max(8, 4 * limit // shards))
        draws = 0 if judge is None else max(_LEAST, math.ceil(sampled(wanted) / shards))
        about = () if self._namespace is None else (self._namespace,)
        looks = [
            call(LOWEST, base, "", lowest, repr(self._now), draws, secrets.randbits(31), *about)
            for base in self._bases
        ]
        replies = self._server.run(looks, moving_ok=True)
        told = [Shard.of(*reply) if reply else _NOTHING for reply in replies]
        if judge is None or any(len(shard.lowest) >= lowest for shard in told):
            return told  # there may be more that goes unjudged
        return judged(told, judge, self._now, wanted)

    def _removal(self, place: int, share: Share) -> Command:
        base = self._bases[place]
        whose = "" if self._namespace is None else f":{self._namespace}"
        linger = (LINGER_MS, LINGER_PART_MS, LINGER_MOST_MS)
        ageing = int(self._judge is None)
        pairs = [piece for one in share.victims for piece in (one.score_text, one.blob)]
        kept = departed_kept(len(self._bases))
        return call(
            EVICT, base, "", share.floor, whose, repr(self._now), kept, *linger, ageing, *pairs
        )
