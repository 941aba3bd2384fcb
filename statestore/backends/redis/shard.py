"""What every script that changes a shard begins with, in Lua: names, sums, orders, removals.

``KEYS`` declares the shard's keys: while a Cluster moves their slot, Redis then refuses what would
meet only half of them. Scripts build the names again from ``ARGV[1]``, the shard's base; those of
parts are not declared, they share the tag and hence the slot.

An error in the middle of a script undoes nothing. So arguments are checked before a script is sent,
and the first write is one that a full server refuses: then nothing was written, and from there on
Redis refuses nothing to the script. Where a full server must allow it (a touch, a quarantine, a
removal), something is removed first, which Redis never refuses.

An entry's *rank* is its place in ``ranks``: namespace, a zero byte, 0 if it is quarantined or else
1, the score as 17 characters that sort as it does, and the digest. What is counted is in `sums`.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from statestore.backends.redis.rows import FIELDS
from statestore.backends.redis.sums import LUA_SUMS

Command: TypeAlias = tuple[Any, ...]

#: What a shard has beside its entries and parts.
SHARD_KEYS: Final = (
    "used",
    "order",
    "barred",
    "ranks",
    "expiry",
    "tokens",
    "totals",
    "departed",
    "departures",
    "anchors",
    "recount",
    "recounted",
)

#: Removals remembered, over all shards.
DEPARTED_ENTRIES: Final = 10_000

#: The fields of an entry, for ``HMGET``.
LUA_FIELDS: Final = ", ".join(f"'{name}'" for name in FIELDS)

SHARD: Final = f"""
local base, digest = ARGV[1], ARGV[2]
local entry = base .. 'entry:' .. digest

-- What is no hash holds no sums: `usage` has them made anew.
local kind = redis.call('TYPE', base .. 'totals').ok
if kind ~= 'hash' and kind ~= 'none' then
  redis.call('UNLINK', base .. 'totals')
  redis.call('HSET', base .. 'totals', 'lost', 1)
end

local function names_part(blob, index)
  return base .. 'part:' .. blob .. ':' .. index
end

-- What a hand or a fault left in place of a number counts as 0: such an entry goes like any other.
local function sound(text)
  local value = tonumber(text)
  return (value and value == value) and text or '0'
end

local function number(text)
  return tonumber(sound(text))
end

local function blob_of(id, kept)
  local mark = (kept or ''):sub(1, 1)
  return (mark == '-' or mark == '.') and id .. kept or kept
end

local function unlink_parts(blob, count)
  local gone = 0
  for index = 0, number(count) - 1 do
    gone = gone + redis.call('UNLINK', names_part(blob, index))
  end
  return gone
end

local function row(key)
  return redis.call('HMGET', key, {LUA_FIELDS})
end

local function expired(at, now)
  return at ~= '' and (tonumber(at) or 0) <= tonumber(now)
end

-- In the order of a sorted set. Lua has that of the server's locale: in Danish `aa` is behind `b`.
local function comes_before(one, other)
  for i = 1, math.min(#one, #other) do
    if one:byte(i) ~= other:byte(i) then
      return one:byte(i) < other:byte(i)
    end
  end
  return #one < #other
end

local function bytes_to_hex(bytes)
  local count = math.min(#bytes, 64) -- more is a hand's; no order needs it
  return string.format(string.rep('%02x', count), bytes:byte(1, count))
end

{LUA_SUMS}
local function sortable(score)
  local bytes = struct.pack('>d', number(score))
  if bytes:byte() < 128 then
    return '1' .. bytes_to_hex(bytes)
  end
  return '0' .. bytes_to_hex((bytes:gsub('.', function(c) return string.char(255 - c:byte()) end)))
end

local function rank_of(namespace, status, score, id)
  return namespace .. '\\0' .. (status == 'quarantined' and '0' or '1') .. sortable(score) .. id
end

local function place_of(key, id)
  local f = redis.call('HMGET', key, 'namespace', 'status', 'score', 'token_digest')
  if redis.call('EXISTS', key) == 0 then
    return nil
  end
  local rank = rank_of(f[1] or '', f[2], f[3], id)
  return {{rank = rank, tokens = tokens_of(f[4] or '', id)}}
end

local function arrange(key, id)
  local f = redis.call('HMGET', key, 'used_at', 'score', 'pinned', 'expires_at', 'status')
  local place = place_of(key, id)
  local score = sound(f[2])
  redis.call('ZREM', base .. 'barred', id)
  redis.call('ZADD', base .. 'used', sound(f[1]), id)
  if f[3] == '1' then
    redis.call('ZREM', base .. 'order', id)
    redis.call('ZREM', base .. 'ranks', place.rank)
  else
    if f[5] == 'quarantined' then
      redis.call('ZREM', base .. 'order', id)
      redis.call('ZADD', base .. 'barred', score, id)
    else
      redis.call('ZADD', base .. 'order', score, id)
    end
    redis.call('ZADD', base .. 'ranks', 0, place.rank)
  end
  if sound(f[4]) ~= f[4] then
    redis.call('ZREM', base .. 'expiry', id)
  else
    redis.call('ZADD', base .. 'expiry', f[4], id)
  end
  redis.call('ZADD', base .. 'tokens', 0, place.tokens)
  return place
end

local function disarrange(id, place)
  for _, order in ipairs({{'used', 'order', 'barred', 'expiry'}}) do
    redis.call('ZREM', base .. order, id)
  end
  redis.call('ZREM', base .. 'ranks', place.rank)
  redis.call('ZREM', base .. 'tokens', place.tokens)
end

-- `work` changes the entry, and its place with it; a full server refuses none of it.
local function move(key, id, work)
  local before = place_of(key, id)
  redis.call('ZREM', base .. 'barred', id)
  work()
  if arrange(key, id).rank ~= before.rank then
    redis.call('ZREM', base .. 'ranks', before.rank)
  end
end

local function remember(id, n_tokens, reason, at, keep)
  redis.call('HSET', base .. 'departed', id, n_tokens .. ' ' .. at .. ' ' .. reason)
  redis.call('ZADD', base .. 'departures', at, id)
  local excess = redis.call('ZCARD', base .. 'departures') - tonumber(keep)
  if excess > 0 then
    local oldest = redis.call('ZRANGE', base .. 'departures', 0, excess - 1)
    redis.call('HDEL', base .. 'departed', unpack(oldest))
    redis.call('ZREM', base .. 'departures', unpack(oldest))
  end
end

local function remove(key, id, reason, at, keep, let_go)
  local f = redis.call('HMGET', key, 'n_tokens', 'blob', 'parts')
  local before, place = weigh(key), place_of(key, id)
  redis.call('UNLINK', key)
  local gone = f[2] and let_go(blob_of(id, f[2]), number(f[3])) or 0
  disarrange(id, place)
  account(key, before)
  remember(id, number(f[1]), reason, at, keep)
  return gone
end
"""


def call(script: str, base: str, digest: str, *arguments: bytes | str | float) -> Command:
    """The command that runs `script` on the shard of `base`."""
    keys = (f"{base}entry:{digest}", *(base + name for name in SHARD_KEYS))
    return ("EVAL", script, len(keys), *keys, base, digest, *arguments)


def departed_kept(shards: int) -> int:
    """How many removals one of so many shards remembers."""
    return max(1, DEPARTED_ENTRIES // shards)
