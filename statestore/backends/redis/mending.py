"""What a sweep does to one shard in one atomic step, in Lua; see `shard` and `sweeping`."""

from __future__ import annotations

from typing import Final

from statestore.backends.redis.shard import SHARD
from statestore.backends.redis.sums import MARK

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
    if redis.pcall('HSETNX', base .. 'anchors', '', 0) == 1 then
      redis.call('HSETNX', base .. 'anchors', '#', 1)
    end
    account(entry, before)
  end
end
"""
)

#: ARGV: base, '', the order's name, members. Strike off those whose entry has gone, or whose place
#: in the order is another. How many those were. A count that has begun may tell of what has gone:
#: it is to begin anew.
WEED: Final = (
    SHARD
    + """
local gone, order = 0, ARGV[3]
local function in_place(member)
  local id = member:sub(-64)
  if order ~= 'ranks' and order ~= 'tokens' then
    return redis.call('EXISTS', base .. 'entry:' .. id) == 1
  end
  local place = place_of(base .. 'entry:' .. id, id)
  return place and member == (order == 'ranks' and place.rank or place.tokens)
end
for i = 4, #ARGV do
  if not in_place(ARGV[i]) then
    gone = gone + redis.call('ZREM', base .. order, ARGV[i])
  end
end
if gone > 0 and order == 'used' then
  redis.call('UNLINK', base .. 'recount', base .. 'recounted')
end
return gone
"""
)

#: ARGV: base. 1 if the totals and orders tell of as many entries as are listed, and `anchors` does,
#: in the form that it has now.
AGREES: Final = (
    SHARD
    + f"""
local function size(order)
  return redis.call('ZCARD', base .. order)
end
local listed, namespaces = size('used'), 0
local found = redis.call('HGETALL', base .. 'totals')
local totals = {{}}
for i = 1, #found, 2 do
  totals[found[i]] = tonumber(found[i + 1])
  if found[i]:sub(1, 8) == 'entries:' then
    namespaces = namespaces + totals[found[i]]
  end
end
local free = listed - (totals['pinned'] or 0)
if totals['damaged'] or ((totals['pinned'] or 0) > 0 and not totals['pinned_bytes']) then
  return 0 -- the latter is of an earlier release
end
local beside = redis.pcall('HMGET', base .. 'anchors', '', '{MARK}')
if tonumber(beside[1] or 0) ~= listed or (listed > 0 and not beside[2]) then
  return 0
end
return ((totals['entries'] or 0) == listed and namespaces == listed and size('ranks') == free
  and size('order') + size('barred') == free and size('tokens') == listed) and 1 or 0
"""
)
