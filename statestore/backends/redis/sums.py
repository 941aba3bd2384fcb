"""What is counted of a shard's entries, in Lua: the part of `shard` that keeps the sums right.

``totals`` has the sums over all entries, and those of each namespace.

``anchors`` tells what lies beside each anchor (`StateKey.anchor`, 8 bytes): behind a ``#`` the
first 4 bytes of up to `NAMED` digests, so that a lookup asks for those alone; of more entries their
number, and what is once a number stays one until the last has gone. Below ``?`` is how many
entries' anchor is not known; named ones are beside none. The field ``#`` says that the hash was
begun in this form; an earlier build had numbers alone. The field of no name counts all, and lookups
believe the hash while the totals tell of as many. What the server evicted of either, or an earlier
release left out, is thus noticed; that one's entries have no field ``anchor``, and are counted when
a sweep gives them one. What no longer is there may still be told of, which costs a look; what is
there and not told of would be hidden.

While a shard is counted anew (see `recounting`), ``recount`` and ``recounted`` are what will be its
``totals`` and ``anchors``. They tell of the entries up to a cursor in the order of ``tokens``,
where an entry keeps its place for life; who changes one of these changes them as well.
"""

from __future__ import annotations

from typing import Final

#: Entries beside one anchor that are told of by name: one takes no more memory than a number.
NAMED: Final = 15

#: How an anchor's value begins that is names.
MARK: Final = "#"

#: Hex digits of a digest that are its name beside an anchor.
SHORT_DIGITS: Final = 8

LUA_SUMS: Final = f"""
local SUMS = {{'entries', 'blob_bytes', 'state_bytes', 'quarantined', 'pinned', 'pinned_bytes'}}
local NONE = {{0, 0, 0, 0, 0, 0, counted = 0}}

local function weigh(key)
  local f = redis.call('HMGET', key, 'blob_bytes', 'state_bytes', 'status', 'pinned', 'namespace',
    'anchor', 'role', 'token_digest')
  if not (f[1] and f[3]) and redis.call('EXISTS', key) == 0 then
    return NONE
  end
  local barred = f[3] == 'quarantined' and 1 or 0
  local damaged = sound(f[1]) ~= f[1]
  if damaged then
    redis.call('HDEL', base .. 'totals', 'damaged') -- a full server refuses nothing after this
    redis.call('HSET', base .. 'totals', 'damaged', 1) -- what it was counted with is not known
  end
  local size, pinned, whose = number(f[1]), number(f[4]), ':' .. (f[5] or '')
  local beside = f[6] and f[7] ~= 'named' and (#f[6] == 8 and f[6] or '?') or nil
  return {{
    1, size, number(f[2]), barred, pinned, pinned * size, whose = whose, id = key:sub(-64),
    counted = f[6] and 1 or 0, beside = beside, token_digest = f[8] or '', damaged = damaged
  }}
end

-- Its place in `tokens`.
local function tokens_of(token_digest, id)
  return bytes_to_hex(token_digest) .. id
end

local function count(name, field, change)
  local there = redis.pcall('HINCRBY', name, field, change)
  if type(there) ~= 'number' then
    redis.call('UNLINK', name) -- a hand's
  elseif there <= 0 and field ~= '' then
    redis.call('HDEL', name, field)
  end
end

-- The names beside an anchor; nil where none are, or their number alone.
local function names_at(name, anchor)
  local kept = redis.pcall('HGET', name, anchor)
  if kept == false then
    return '{MARK}'
  end
  return type(kept) == 'string' and kept:sub(1, 1) == '{MARK}' and #kept % 4 == 1 and kept or nil
end

local function short(id)
  return struct.pack('>I4', tonumber(id:sub(1, {SHORT_DIGITS}), 16) or 0)
end

local function come(name, one)
  local names = one.beside ~= '?' and names_at(name, one.beside)
  if not names then
    count(name, one.beside, 1)
    return
  end
  local known = (#names - 1) / 4
  redis.call('HSET', name, one.beside, known < {NAMED} and names .. short(one.id) or known + 1)
end

local function go(name, one)
  local names = one.beside ~= '?' and names_at(name, one.beside)
  if not names then
    count(name, one.beside, -1)
    return
  end
  local mine = short(one.id)
  for at = 2, #names, 4 do
    if names:sub(at, at + 3) == mine then
      local left = names:sub(1, at - 1) .. names:sub(at + 4)
      if #left == 1 then
        redis.call('HDEL', name, one.beside)
      else
        redis.call('HSET', name, one.beside, left)
      end
      return
    end
  end
end

local function count_beside(name, before, after)
  local all = after.counted - before.counted
  if all ~= 0 and redis.pcall('HEXISTS', name, '') ~= 0 then
    count(name, '', all)
  end
  if before.beside ~= after.beside then
    if after.beside then
      come(name, after)
    end
    if before.beside then
      go(name, before)
    end
  end
end

local function add(name, whose, before, after)
  for i, sum in ipairs(SUMS) do
    if after[i] ~= before[i] then
      redis.call('HINCRBY', name, sum .. whose, string.format('%.0f', after[i] - before[i]))
    end
  end
  if redis.call('HGET', name, 'entries' .. whose) == '0' then
    for _, sum in ipairs(SUMS) do
      redis.call('HDEL', name, sum .. whose)
    end
  end
end

local function add_each(name, before, after)
  add(name, '', before, after)
  if before.whose == after.whose then
    add(name, before.whose, before, after)
    return
  end
  if before.whose then
    add(name, before.whose, before, NONE)
  end
  if after.whose then
    add(name, after.whose, NONE, after)
  end
end

-- The first to be counted here, or since a flush, begins a hash that can be believed.
local function begin_anchors()
  if redis.call('EXISTS', base .. 'anchors') == 0 then
    local known = number(redis.call('HGET', base .. 'totals', 'entries'))
    if redis.call('ZCARD', base .. 'used') == known + 1 then -- else the totals were lost as well
      redis.call('HSET', base .. 'anchors', '', 0, '{MARK}', 1)
    end
  end
end

local function account(key, before)
  local after = weigh(key)
  if after.counted > before.counted then
    begin_anchors()
  end
  count_beside(base .. 'anchors', before, after)
  add_each(base .. 'totals', before, after)
  local cursor = redis.pcall('HGET', base .. 'recount', 'cursor')
  if type(cursor) == 'string' then
    local function passed(one)
      local ahead = not one.id or comes_before(cursor, tokens_of(one.token_digest, one.id))
      return ahead and NONE or one
    end
    before, after = passed(before), passed(after)
    if before ~= after then
      if before.damaged then
        redis.call('HSET', base .. 'recount', 'damaged', 1)
      end
      count_beside(base .. 'recounted', before, after)
      add_each(base .. 'recount', before, after)
    end
  end
end
"""
