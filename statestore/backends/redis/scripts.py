"""What happens to entries in one atomic step, in Lua, on one shard; see `shard`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from statestore.backends.redis.parts import count_parts
from statestore.backends.redis.rows import FIELDS, to_fields
from statestore.backends.redis.shard import LUA_FIELDS, SHARD, Command, call, departed_kept
from statestore.backends.redis.sums import MARK, SHORT_DIGITS
from statestore.entry import Entry

#: ARGV: base, now, digests in hex joined, deepest first; then, of each run of keys that share an
#: anchor, that and the place of its first key, or nothing. The place (from 0) and the fields of the
#: first that is usable. One long argument is read and sent much faster than thousands of names. A
#: run whose anchor is absent costs no call, one whose entries are known by name (see `sums`) a call
#: for each that may be among the keys, another a call, and its halves.
LONGEST: Final = f"""
local entries, now, digests = ARGV[1] .. 'entry:', tonumber(ARGV[2]), ARGV[3]
local DIGITS, RUN = 64, 64
local STATUS, EXPIRES = {FIELDS.index("status") + 1}, {FIELDS.index("expires_at") + 1}
local function name_of(place)
  return entries .. digests:sub(place * DIGITS + 1, (place + 1) * DIGITS)
end
local function usable(place, name)
  local f = redis.call('HMGET', name, {LUA_FIELDS})
  local expires = f[EXPIRES]
  if f[STATUS] == 'ready' and (expires == '' or (tonumber(expires) or 0) > now) then
    return {{place, f}}
  end
end
-- Of names[from] to names[to], of which `there` exist, the first that is usable.
local function first_of(names, first, from, to, there)
  if there == 0 then
    return nil
  elseif from == to then
    return usable(first + from - 1, names[from])
  end
  local middle = math.floor((from + to) / 2)
  local near = redis.call('EXISTS', unpack(names, from, middle))
  return first_of(names, first, from, middle, near)
    or first_of(names, first, middle + 1, to, there - near)
end
local function search(from, to)
  for first = from, to - 1, RUN do
    local names = {{}}
    for place = first, math.min(first + RUN, to) - 1 do
      names[#names + 1] = name_of(place)
    end
    local found = first_of(names, first, 1, #names, redis.call('EXISTS', unpack(names)))
    if found then
      return found
    end
  end
  return false
end
-- As `search`, for keys whose digests begin as `beside` says.
local function search_named(from, to, beside)
  local known = {{}}
  for at = 2, #beside, 4 do
    known[string.format('%0{SHORT_DIGITS}x', struct.unpack('>I4', beside, at))] = true
  end
  for place = from, to - 1 do
    local start = place * DIGITS
    if known[digests:sub(start + 1, start + {SHORT_DIGITS})] then
      local found = usable(place, name_of(place))
      if found then
        return found
      end
    end
  end
  return false
end
local count = #digests / DIGITS
local anchors, places = {{}}, {{}}
for i = 4, #ARGV, 2 do
  anchors[#anchors + 1], places[#places + 1] = ARGV[i], tonumber(ARGV[i + 1])
end
local function known_beside()
  local known = redis.pcall('HMGET', ARGV[1] .. 'anchors', '', '?', unpack(anchors))
  local complete = known[1] and known[1] == redis.pcall('HGET', ARGV[1] .. 'totals', 'entries')
  return complete and not known[2] and known
end
local known = #anchors > 0 and known_beside()
if not known then
  return search(0, count)
end
places[#places + 1] = count
for i = 1, #anchors do
  local beside = known[i + 2]
  local named = beside and beside:sub(1, 1) == '{MARK}' and #beside % 4 == 1
  local found = beside and (named and search_named or search)(places[i], places[i + 1], beside)
  if found then
    return found
  end
end
return false
"""

PUBLISHED: Final = 1
PRESENT: Final = 0
LOST: Final = -1

#: ARGV: base, digest, now, blob, number of parts, field, value, ... `PUBLISHED`; `PRESENT`, a
#: usable entry was there; `LOST`, a part has gone. Sent twice, it says the same twice.
PUBLISH: Final = (
    SHARD
    + """
local blob, parts = ARGV[4], tonumber(ARGV[5])
local old = redis.call('HMGET', entry, 'status', 'expires_at', 'blob', 'parts')
old[3] = blob_of(digest, old[3])
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
local before, place = weigh(entry), place_of(entry, digest)
redis.call('HSET', entry, 'parts', parts, unpack(ARGV, 6))
for index = 0, parts - 1 do
  redis.call('PERSIST', names_part(blob, index))
end
if old[3] then
  unlink_parts(old[3], old[4])
  disarrange(digest, place)
end
arrange(entry, digest)
redis.call('HDEL', base .. 'departed', digest)
redis.call('ZREM', base .. 'departures', digest)
account(entry, before)
return 1
"""
)

#: ARGV: base, digest, token count, field, value, ...
TOUCH: Final = (
    SHARD
    + """
if redis.call('HGET', entry, 'n_tokens') ~= ARGV[3] then
  return 0
end
move(entry, digest, function()
  redis.call('HINCRBY', entry, 'hits', 1)
  redis.call('HSET', entry, unpack(ARGV, 4))
end)
return 1
"""
)

#: ARGV: base, digest, token count, blob or '', field, value, ...
UPDATE: Final = (
    SHARD
    + """
local f = redis.call('HMGET', entry, 'n_tokens', 'blob')
if f[1] ~= ARGV[3] or (ARGV[4] ~= '' and blob_of(digest, f[2]) ~= ARGV[4]) then
  return 0
end
if #ARGV > 4 then
  local before = weigh(entry)
  move(entry, digest, function()
    redis.call('HSET', entry, unpack(ARGV, 5))
  end)
  account(entry, before)
end
return 1
"""
)

#: ARGV: base, digest, token count or '' (any), blob or '' (any), a moment by which it must have
#: expired or '', reason, now, how many removals to remember. The parts that went, the blob's name
#: and bytes; nil: not removed. An absent entry's place in ``expiry`` is cleared.
DELETE: Final = (
    SHARD
    + """
local f = redis.call('HMGET', entry, 'n_tokens', 'blob', 'expires_at', 'blob_bytes')
f[2] = blob_of(digest, f[2])
if redis.call('EXISTS', entry) == 0 then
  redis.call('ZREM', base .. 'expiry', digest)
  return false
end
if (ARGV[3] ~= '' and f[1] ~= ARGV[3]) or (ARGV[4] ~= '' and f[2] ~= ARGV[4])
    or (ARGV[5] ~= '' and not expired(f[3], ARGV[5])) then
  return false
end
local gone = remove(entry, digest, ARGV[6], ARGV[7], ARGV[8], unlink_parts)
return {gone, f[2] or '', f[4] or '0'}
"""
)

#: ARGV: base, '', used_at and digest after which to go on ('' and '': from the newest), how many.
#: Their number, the last one's used_at and digest, and the rows that are still there.
PAGE: Final = (
    SHARD
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
      if not tie[1] or tonumber(tie[2]) ~= tonumber(last) or comes_before(tie[1], member) then
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
    SHARD
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

#: ARGV: base, '', fields. Whether the sums were lost, or nil, and these fields of ``totals``.
TOTALS: Final = (
    SHARD
    + """
return redis.call('HMGET', base .. 'totals', 'lost', unpack(ARGV, 3))
"""
)


def totals(base: str, fields: Sequence[str]) -> Command:
    """The command that reads these fields of a shard's totals; see `TOTALS`. It meets one key, so
    that a Cluster answers while it moves the slot.
    """
    return ("EVAL", TOTALS, 1, f"{base}totals", base, "", *fields)


def publication(base: str, entry: Entry) -> Command:
    """The command that publishes an entry whose parts are written; see `PUBLISH`.

    Raises:
        InputError: a field cannot be stored.
    """
    flat = [piece for field in to_fields(entry).items() for piece in field]
    now, count = repr(float(entry.created_at)), count_parts(entry.blob_bytes)
    return call(PUBLISH, base, entry.key.hex, now, entry.blob, count, *flat)


def removal(
    base: str,
    digest: str,
    reason: str,
    at: float,
    shards: int,
    *,
    n_tokens: int | str = "",
    blob: bytes | str = "",
    expired_by: str = "",
) -> Command:
    """The command that removes an entry if what is given of it is so; see `DELETE`."""
    kept = departed_kept(shards)
    return call(DELETE, base, digest, n_tokens, blob, expired_by, reason, repr(at), kept)


def longest(
    base: str, digests: Sequence[bytes], now: float, runs: Sequence[tuple[bytes, int]] = ()
) -> Command:
    """The command that finds the first usable of `digests`, all of one shard; see `LONGEST`.

    Args:
        base: the shard's.
        digests: deepest first.
        now: a state that has expired by then is none.
        runs: the anchor and the first place of each run of one anchor, where they are known.
    """
    joined = b"".join(digests).hex()
    flat = [piece for run in runs for piece in run]
    return ("EVAL", LONGEST, 1, f"{base}used", base, repr(float(now)), joined, *flat)


def page(base: str, last: str | bytes, digest: str | bytes, size: int) -> Command:
    """The command that reads the next `size` entries of a shard by use; see `PAGE`."""
    return call(PAGE, base, "", last, digest, size)
