"""What happens in one atomic step, in Lua. Each script runs on one shard.

``KEYS`` declares the shard's keys: while a Cluster moves their slot, Redis then refuses what would
meet only half of them. Scripts build the names again from ``ARGV[1]``, the shard's base; those of
parts are not declared, they share the tag and hence the slot.

An error in the middle of a script undoes nothing. So arguments are checked before a script is sent,
and the first write is one that a full server refuses: then nothing was written, and from there on
Redis refuses nothing to the script. Where a full server must allow it (a touch, a quarantine, a
removal), something is removed first, which Redis never refuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from statestore.backends.redis.rows import FIELDS

Command: TypeAlias = tuple[Any, ...]

#: What a shard has beside its entries and parts.
SHARD_KEYS: Final = ("used", "order", "expiry", "tokens", "totals", "departed", "departures")

#: Removals remembered, over all shards.
DEPARTED_ENTRIES: Final = 10_000

_FIELDS: Final = ", ".join(f"'{name}'" for name in FIELDS)

_SHARD: Final = f"""
local base, digest = ARGV[1], ARGV[2]
local entry = base .. 'entry:' .. digest

local function names_part(blob, index)
  return base .. 'part:' .. blob .. ':' .. index
end

local function unlink_parts(blob, count)
  local gone = 0
  for index = 0, tonumber(count) - 1 do
    gone = gone + redis.call('UNLINK', names_part(blob, index))
  end
  return gone
end

local function row(key)
  return redis.call('HMGET', key, {_FIELDS})
end

local function expired(at, now)
  return at ~= '' and tonumber(at) <= tonumber(now)
end

local SUMS = {{'entries', 'blob_bytes', 'state_bytes', 'quarantined', 'pinned'}}

local function weigh(key)
  local f = redis.call('HMGET', key, 'blob_bytes', 'state_bytes', 'status', 'pinned')
  if not f[1] then
    return {{0, 0, 0, 0, 0}}
  end
  local barred = f[3] == 'quarantined' and 1 or 0
  return {{1, tonumber(f[1]), tonumber(f[2]), barred, tonumber(f[4])}}
end

local function account(before)
  local after = weigh(entry)
  for i, name in ipairs(SUMS) do
    if after[i] ~= before[i] then
      local delta = string.format('%.0f', after[i] - before[i])
      redis.call('HINCRBY', base .. 'totals', name, delta)
    end
  end
end

local function bytes_to_hex(bytes)
  return (bytes:gsub('.', function(c) return string.format('%02x', c:byte()) end))
end

local function arrange(key, id)
  local f = redis.call('HMGET', key, 'used_at', 'score', 'pinned', 'expires_at', 'token_digest')
  redis.call('ZADD', base .. 'used', f[1], id)
  if f[3] == '1' then
    redis.call('ZREM', base .. 'order', id)
  else
    redis.call('ZADD', base .. 'order', f[2], id)
  end
  if f[4] == '' then
    redis.call('ZREM', base .. 'expiry', id)
  else
    redis.call('ZADD', base .. 'expiry', f[4], id)
  end
  redis.call('ZADD', base .. 'tokens', 0, bytes_to_hex(f[5]) .. id)
end

local function disarrange(id, token_digest)
  redis.call('ZREM', base .. 'used', id)
  redis.call('ZREM', base .. 'order', id)
  redis.call('ZREM', base .. 'expiry', id)
  redis.call('ZREM', base .. 'tokens', bytes_to_hex(token_digest) .. id)
end
"""

#: ARGV: base, now, digests in hex joined, deepest first. The place (from 0) and the fields of the
#: first that is usable. One long argument is read and sent much faster than thousands of names, and
#: a run of absent entries costs one call.
LONGEST: Final = f"""
local entries, now, digests = ARGV[1] .. 'entry:', tonumber(ARGV[2]), ARGV[3]
local DIGITS, RUN = 64, 64
local count = #digests / DIGITS
for first = 0, count - 1, RUN do
  local names = {{}}
  for i = first, math.min(first + RUN, count) - 1 do
    names[#names + 1] = entries .. digests:sub(i * DIGITS + 1, (i + 1) * DIGITS)
  end
  if redis.call('EXISTS', unpack(names)) > 0 then
    for i, name in ipairs(names) do
      local f = redis.call('HMGET', name, 'status', 'expires_at')
      if f[1] == 'ready' and (f[2] == '' or tonumber(f[2]) > now) then
        return {{first + i - 1, redis.call('HMGET', name, {_FIELDS})}}
      end
    end
  end
end
return false
"""

#: ARGV: base, digest, now. 1 if a usable entry is there.
STORED: Final = (
    _SHARD
    + """
local f = redis.call('HMGET', entry, 'status', 'expires_at')
return (f[1] == 'ready' and not expired(f[2], ARGV[3])) and 1 or 0
"""
)

PUBLISHED: Final = 1
PRESENT: Final = 0
LOST: Final = -1

#: ARGV: base, digest, now, blob, number of parts, field, value, ... `PUBLISHED`; `PRESENT`, a
#: usable entry was there; `LOST`, a part has gone. Sent twice, it says the same twice.
PUBLISH: Final = (
    _SHARD
    + """
local blob, parts = ARGV[4], tonumber(ARGV[5])
local old = redis.call('HMGET', entry, 'status', 'expires_at', 'blob', 'parts', 'token_digest')
if old[3] == blob then
  return 1
end
if old[1] == 'ready' and not expired(old[2], ARGV[3]) then
  return 0
end
for index = 0, parts - 1 do
  if redis.call('EXISTS', names_part(blob, index)) == 0 then
    return -1
  end
end
local before = weigh(entry)
redis.call('HSET', entry, 'parts', parts, unpack(ARGV, 6))
for index = 0, parts - 1 do
  redis.call('PERSIST', names_part(blob, index))
end
if old[3] then
  unlink_parts(old[3], old[4])
  disarrange(digest, old[5])
end
arrange(entry, digest)
redis.call('HDEL', base .. 'departed', digest)
redis.call('ZREM', base .. 'departures', digest)
account(before)
return 1
"""
)

#: ARGV: base, digest, token count, now, score.
TOUCH: Final = (
    _SHARD
    + """
if redis.call('HGET', entry, 'n_tokens') ~= ARGV[3] then
  return 0
end
redis.call('ZREM', base .. 'used', digest)
redis.call('HINCRBY', entry, 'hits', 1)
redis.call('HSET', entry, 'used_at', ARGV[4], 'score', ARGV[5])
arrange(entry, digest)
return 1
"""
)

#: ARGV: base, digest, token count, blob or '', field, value, ...
UPDATE: Final = (
    _SHARD
    + """
local f = redis.call('HMGET', entry, 'n_tokens', 'blob')
if f[1] ~= ARGV[3] or (ARGV[4] ~= '' and f[2] ~= ARGV[4]) then
  return 0
end
if #ARGV > 4 then
  local before = weigh(entry)
  redis.call('ZREM', base .. 'used', digest)
  redis.call('HSET', entry, unpack(ARGV, 5))
  arrange(entry, digest)
  account(before)
end
return 1
"""
)

#: ARGV: base, digest, token count or '' (any), blob or '' (any), a moment by which it must have
#: expired or '', reason, now, how many removals to remember. The parts that went, the blob's name
#: and bytes; nil: not removed. An absent entry's place in ``expiry`` is cleared.
DELETE: Final = (
    _SHARD
    + """
local f = redis.call('HMGET', entry, 'n_tokens', 'blob', 'parts', 'token_digest', 'expires_at',
  'blob_bytes')
if not f[1] then
  redis.call('ZREM', base .. 'expiry', digest)
  return false
end
if (ARGV[3] ~= '' and f[1] ~= ARGV[3]) or (ARGV[4] ~= '' and f[2] ~= ARGV[4])
    or (ARGV[5] ~= '' and not expired(f[5], ARGV[5])) then
  return false
end
local before = weigh(entry)
redis.call('UNLINK', entry)
local gone = unlink_parts(f[2], f[3])
disarrange(digest, f[4])
account(before)
redis.call('HSET', base .. 'departed', digest, f[1] .. ' ' .. ARGV[7] .. ' ' .. ARGV[6])
redis.call('ZADD', base .. 'departures', ARGV[7], digest)
local excess = redis.call('ZCARD', base .. 'departures') - tonumber(ARGV[8])
if excess > 0 then
  local oldest = redis.call('ZRANGE', base .. 'departures', 0, excess - 1)
  redis.call('HDEL', base .. 'departed', unpack(oldest))
  redis.call('ZREM', base .. 'departures', unpack(oldest))
end
return {gone, f[2], f[6]}
"""
)

#: ARGV: base, '', used_at and digest after which to go on ('' and '': from the newest), how many.
#: Their number, the last one's used_at and digest, and the rows that are still there.
PAGE: Final = (
    _SHARD
    + """
local used, last, member = base .. 'used', ARGV[3], ARGV[4]
local start = 0
if last ~= '' then
  local score = redis.call('ZSCORE', used, member)
  if score and tonumber(score) == tonumber(last) then
    start = redis.call('ZREVRANK', used, member) + 1
  else
    start = redis.call('ZCOUNT', used, '(' .. last, '+inf')
    while true do
      local tie = redis.call('ZREVRANGE', used, start, start, 'WITHSCORES')
      if not tie[1] or tonumber(tie[2]) ~= tonumber(last) or tie[1] < member then
        break
      end
      start = start + 1
    end
  end
end
local found = redis.call('ZREVRANGE', used, start, start + tonumber(ARGV[5]) - 1, 'WITHSCORES')
local rows = {}
for i = 1, #found, 2 do
  local f = row(base .. 'entry:' .. found[i])
  if f[1] then
    rows[#rows + 1] = f
  end
end
return {#found / 2, found[#found] or '', found[#found - 1] or '', rows}
"""
)

#: ARGV: base, digest or '', token digest (hex) or ''. The rows of that entry, or of those tokens.
ROWS: Final = (
    _SHARD
    + """
local ids = {digest}
if ARGV[3] ~= '' then
  ids = {}
  local from, to = '[' .. ARGV[3], '[' .. ARGV[3] .. 'g'
  for _, member in ipairs(redis.call('ZRANGEBYLEX', base .. 'tokens', from, to)) do
    ids[#ids + 1] = member:sub(#ARGV[3] + 1)
  end
end
local rows = {}
for _, id in ipairs(ids) do
  local f = row(base .. 'entry:' .. id)
  if f[1] then
    rows[#rows + 1] = f
  end
end
return rows
"""
)

#: ARGV: base, digest, blob, how long an unpublished part lives (ms), grace (ms), indexes of parts.
#: The number of parts removed and their bytes; nil if the entry names the blob.
ORPHAN: Final = (
    _SHARD
    + """
if redis.call('HGET', entry, 'blob') == ARGV[3] then
  return false
end
local gone, bytes = 0, 0
for i = 6, #ARGV do
  local part = names_part(ARGV[3], ARGV[i])
  local left = redis.call('PTTL', part)
  if left == -1 or (left >= 0 and tonumber(ARGV[4]) - left >= tonumber(ARGV[5])) then
    bytes = bytes + redis.call('STRLEN', part)
    gone = gone + redis.call('UNLINK', part)
  end
end
return {gone, bytes}
"""
)

#: ARGV: base, digest. Put the entry into its orders, from which the server may have evicted it.
REARRANGE: Final = (
    _SHARD
    + """
if redis.call('EXISTS', entry) == 1 then
  arrange(entry, digest)
end
"""
)

#: ARGV: base. Forget entries that the server evicted, and sum the totals anew. Reads every entry of
#: the shard in one step (about 1 s for a million), so it is for shards that are known to be wrong.
RECOUNT: Final = (
    _SHARD
    + """
local sums, there = {0, 0, 0, 0, 0}, {}
for _, id in ipairs(redis.call('ZRANGE', base .. 'used', 0, -1)) do
  local one = weigh(base .. 'entry:' .. id)
  there[id] = one[1] == 1
  for i = 1, #sums do
    sums[i] = sums[i] + one[i]
  end
end
for _, order in ipairs({'used', 'order', 'expiry', 'tokens'}) do
  for _, member in ipairs(redis.call('ZRANGE', base .. order, 0, -1)) do
    if not there[member:sub(-64)] then
      redis.call('ZREM', base .. order, member)
    end
  end
end
for i, name in ipairs(SUMS) do
  redis.call('HSET', base .. 'totals', name, string.format('%.0f', sums[i]))
end
return sums[1]
"""
)


def call(script: str, base: str, digest: str, *arguments: bytes | str | float) -> Command:
    """The command that runs `script` on the shard of `base`."""
    keys = (f"{base}entry:{digest}", *(base + name for name in SHARD_KEYS))
    return ("EVAL", script, len(keys), *keys, base, digest, *arguments)


def removal(
    base: str,
    digest: str,
    reason: str,
    at: float,
    shards: int,
    *,
    n_tokens: int | str = "",
    blob: str = "",
    expired_by: str = "",
) -> Command:
    """The command that removes an entry if what is given of it is so; see `DELETE`."""
    kept = max(1, DEPARTED_ENTRIES // shards)
    return call(DELETE, base, digest, n_tokens, blob, expired_by, reason, repr(at), kept)


def longest(base: str, digests: Sequence[bytes], now: float) -> Command:
    """The command that finds the first usable of `digests`, all of one shard; see `LONGEST`."""
    joined = b"".join(digests).hex()
    return ("EVAL", LONGEST, 1, f"{base}used", base, repr(float(now)), joined)


def page(base: str, last: str | bytes, digest: str | bytes, size: int) -> Command:
    """The command that reads the next `size` entries of a shard by use; see `PAGE`."""
    return call(PAGE, base, "", last, digest, size)
