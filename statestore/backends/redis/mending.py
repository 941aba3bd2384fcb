"""What a sweep does to one shard in one atomic step, in Lua; see `shard` and `sweeping`."""

from __future__ import annotations

from typing import Final

from statestore.backends.redis.shard import SHARD

#: ARGV: base, digest, blob, how long an unpublished part lives (ms), grace (ms), how long a part of
#: an evicted blob lives at most (ms), indexes of parts. How many parts were removed, and their
#: bytes; nil if the entry names the blob. What is about to go by itself may be in a reader's hands.
ORPHAN: Final = (
    SHARD
    + """
if blob_of(digest, redis.call('HGET', entry, 'blob')) == ARGV[3] then
  return false
end
local gone, bytes = 0, 0
for i = 7, #ARGV do
  local part = names_part(ARGV[3], ARGV[i])
  local left = redis.call('PTTL', part)
  local age = tonumber(ARGV[4]) - left
  if left == -1 or (left > tonumber(ARGV[6]) and age >= tonumber(ARGV[5])) then
    bytes = bytes + redis.call('STRLEN', part)
    gone = gone + redis.call('UNLINK', part)
  end
end
return {gone, bytes}
"""
)

#: ARGV: base, digest. Put the entry into its orders, from which the server may have evicted it. One
#: whose blob's name an earlier release kept whole is written anew, in half the memory.
REARRANGE: Final = (
    SHARD
    + """
if redis.call('EXISTS', entry) == 1 then
  local blob = redis.call('HGET', entry, 'blob') or ''
  if blob:sub(1, 64) == digest and blob_of(digest, blob:sub(65)) == blob then
    local fields = redis.call('HGETALL', entry)
    for i = 1, #fields, 2 do
      if fields[i] == 'blob' then
        fields[i + 1] = blob:sub(65)
      end
    end
    redis.call('UNLINK', entry)
    redis.call('HSET', entry, unpack(fields))
  end
  arrange(entry, digest)
end
"""
)

#: ARGV: base, '', how many entries are listed. 1 if the totals and orders tell of as many.
AGREES: Final = (
    SHARD
    + """
local listed, namespaces = tonumber(ARGV[3]), 0
local found = redis.call('HGETALL', base .. 'totals')
local totals = {}
for i = 1, #found, 2 do
  totals[found[i]] = tonumber(found[i + 1])
  if found[i]:sub(1, 8) == 'entries:' then
    namespaces = namespaces + totals[found[i]]
  end
end
local function size(order)
  return redis.call('ZCARD', base .. order)
end
local free = listed - (totals['pinned'] or 0)
if totals['damaged'] or ((totals['pinned'] or 0) > 0 and not totals['pinned_bytes']) then
  return 0 -- the latter is of an earlier release
end
if tonumber(redis.pcall('HGET', base .. 'anchors', '') or 0) ~= listed then
  return 0
end
return ((totals['entries'] or 0) == listed and namespaces == listed and size('ranks') == free
  and size('order') + size('barred') == free and size('tokens') == listed) and 1 or 0
"""
)

#: ARGV: base. Forget entries that the server evicted, and sum the totals anew. Reads every entry of
#: the shard in one step (about 2 s for a million), so it is for shards that are known to be wrong.
RECOUNT: Final = (
    SHARD
    + """
local sums, there, beside = {}, {}, {}
local function sum(name, amount)
  sums[name] = (sums[name] or 0) + amount
end
for _, id in ipairs(redis.call('ZRANGE', base .. 'used', 0, -1)) do
  local one = weigh(base .. 'entry:' .. id)
  there[id] = one[1] == 1
  for i, name in ipairs(SUMS) do
    sum(name, one[i])
    if one.whose then
      sum(name .. one.whose, one[i])
    end
  end
  if one.beside then
    beside[one.beside] = (beside[one.beside] or 0) + 1
  end
end
for _, order in ipairs({'used', 'order', 'barred', 'expiry', 'tokens'}) do
  for _, member in ipairs(redis.call('ZRANGE', base .. order, 0, -1)) do
    if not there[member:sub(-64)] then
      redis.call('ZREM', base .. order, member)
    end
  end
end
for _, rank in ipairs(redis.call('ZRANGE', base .. 'ranks', 0, -1)) do
  local id = rank:sub(-64)
  if not there[id] or place_of(base .. 'entry:' .. id, id).rank ~= rank then
    redis.call('ZREM', base .. 'ranks', rank)
  end
end
local age = redis.call('HGET', base .. 'totals', 'age')
redis.call('UNLINK', base .. 'totals')
for name, amount in pairs(sums) do
  redis.call('HSET', base .. 'totals', name, string.format('%.0f', amount))
end
if age then
  redis.call('HSET', base .. 'totals', 'age', age)
end
redis.call('UNLINK', base .. 'anchors')
for anchor, count in pairs(beside) do
  redis.call('HSET', base .. 'anchors', anchor, count)
end
redis.call('HSET', base .. 'anchors', '', sums['entries'] or 0)
return sums['entries'] or 0
"""
)
