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
#: of an earlier release, which kept the whole name of its blob, is written anew in half the memory,
#: and counted in ``anchors``.
REARRANGE: Final = (
    SHARD
    + """
if redis.call('EXISTS', entry) == 1 then
  arrange(entry, digest)
  local f = redis.call('HMGET', entry, 'blob', 'anchor')
  if not f[2] then
    local fields, before = redis.call('HGETALL', entry), weigh(entry)
    local rest = (f[1] or ''):sub(65)
    for i = 1, #fields, 2 do
      if fields[i] == 'blob' and blob_of(digest, rest) == f[1] then
        fields[i + 1] = rest
      end
    end
    redis.call('UNLINK', entry)
    redis.call('HSET', entry, 'anchor', '', unpack(fields))
    redis.pcall('HSETNX', base .. 'anchors', '', 0)
    account(entry, before)
  end
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
#: the shard in one step, so it is for shards that are known to be wrong; in stretches, since what
#: Lua holds at once it collects over and over. The orders are gone through where their sizes, or
#: an entry that has gone, say that something in them is wrong.
RECOUNT: Final = (
    SHARD
    + """
local STRETCH = 1000
local function each(order, work)
  for first = 0, redis.call('ZCARD', base .. order) - 1, STRETCH do
    for _, member in ipairs(redis.call('ZRANGE', base .. order, first, first + STRETCH - 1)) do
      work(member)
    end
  end
end
local function weed(order, wrong)
  local found = {}
  each(order, function(member)
    if wrong(member) then
      found[#found + 1] = member
    end
  end)
  for _, member in ipairs(found) do
    redis.call('ZREM', base .. order, member)
  end
  return #found
end
local sums = {}
local function sum(whose, one)
  local known = sums[whose] or {0, 0, 0, 0, 0, 0}
  sums[whose] = known
  for i = 1, #SUMS do
    known[i] = known[i] + one[i]
  end
end
redis.call('UNLINK', base .. 'anchors')
local counted = 0
local gone = weed('used', function(id)
  local one = weigh(base .. 'entry:' .. id)
  if one[1] == 0 then
    return true
  end
  sum('', one)
  sum(one.whose, one)
  counted = counted + one.counted
  if one.beside then
    redis.call('HINCRBY', base .. 'anchors', one.beside, 1)
  end
end)
local all = sums[''] or {0, 0, 0, 0, 0, 0}
redis.call('HSET', base .. 'anchors', '', counted)
local function size(order)
  return redis.call('ZCARD', base .. order)
end
local free = all[1] - all[5]
if gone > 0 or size('tokens') ~= all[1] or size('ranks') ~= free
    or size('order') + size('barred') ~= free then
  local function absent(member)
    return redis.call('EXISTS', base .. 'entry:' .. member:sub(-64)) == 0
  end
  for _, order in ipairs({'order', 'barred', 'expiry', 'tokens'}) do
    weed(order, absent)
  end
  weed('ranks', function(rank)
    local place = place_of(base .. 'entry:' .. rank:sub(-64), rank:sub(-64))
    return not place or place.rank ~= rank
  end)
end
local age = redis.call('HGET', base .. 'totals', 'age')
redis.call('UNLINK', base .. 'totals')
for whose, amounts in pairs(sums) do
  for i, name in ipairs(SUMS) do
    redis.call('HSET', base .. 'totals', name .. whose, string.format('%.0f', amounts[i]))
  end
end
if age then
  redis.call('HSET', base .. 'totals', 'age', age)
end
return all[1]
"""
)
