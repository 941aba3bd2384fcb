"""A shard's sums made anew, while others change what is summed.

In steps of `STEP` entries, which keep nobody waiting: in the order of ``tokens`` up to a cursor,
which lies in the store. Whoever changes an entry that is behind the cursor changes the new sums as
well as the old (see `sums`), so that they are right at every moment for what they tell of. The last
step puts them in place of the old. Until then those are what is told, and lookups take as long as
they do where the sums are wrong.

Where in the end more entries are listed than were counted (the server dropped ``tokens``, or an
earlier build, which knows of no count, put some), the new anchors are not to be believed.

Any process can do the next step. Several that count at a time drive one count; what a process that
died has begun the next one goes on with, unless a sweep strikes off entries that have gone, or it
expires after `KEPT_MS`.
"""

from __future__ import annotations

from typing import Final

from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import SHARD, call
from statestore.backends.redis.sums import MARK

STEP: Final = 64  # entries
KEPT_MS: Final = 600_000

#: ARGV: base, '', how many, 1 to begin where nothing was begun, ms that it is kept. 1 if more are
#: left to count. A full server refuses nothing after the first command that could not need room.
COUNT: Final = (
    SHARD
    + f"""
local sums, anchors = base .. 'recount', base .. 'recounted'
local function keep()
  redis.call('PEXPIRE', sums, ARGV[5])
  redis.call('PEXPIRE', anchors, ARGV[5])
end
keep()
local cursor = redis.pcall('HGET', sums, 'cursor')
if type(cursor) ~= 'string' then
  if ARGV[4] ~= '1' then
    return 0
  end
  cursor = ''
  redis.call('UNLINK', sums, anchors)
  redis.call('HSET', sums, 'cursor', cursor)
  redis.call('HSET', anchors, '', 0, '{MARK}', 1)
end
local first = cursor == '' and '-' or '(' .. cursor
local members = redis.call('ZRANGEBYLEX', base .. 'tokens', first, '+', 'LIMIT', 0, ARGV[3])
local found = {{}}
for _, member in ipairs(members) do
  local id = member:sub(-64)
  local one = weigh(base .. 'entry:' .. id)
  if one.id and tokens_of(one.token_digest, id) == member then
    count_beside(anchors, NONE, one)
    for _, whose in ipairs({{'', one.whose}}) do
      local known = found[whose] or {{0, 0, 0, 0, 0, 0}}
      found[whose] = known
      for i = 1, #SUMS do
        known[i] = known[i] + one[i]
      end
    end
  elseif not one.id then
    disarrange(id, {{rank = '', tokens = member}}) -- the server evicted it
  end
end
for whose, amounts in pairs(found) do
  add(sums, whose, NONE, amounts)
end
if #members == tonumber(ARGV[3]) then
  redis.call('HSET', sums, 'cursor', members[#members])
  keep()
  return 1
end
local listed, ordered = redis.call('ZCARD', base .. 'used'), redis.call('ZCARD', base .. 'tokens')
if listed > math.min(ordered, number(redis.call('HGET', sums, 'entries'))) then
  redis.pcall('HDEL', anchors, '') -- some were not met: nobody is to believe what hides them
end
local age = redis.call('HGET', base .. 'totals', 'age')
redis.call('HDEL', sums, 'cursor')
redis.call('UNLINK', base .. 'totals', base .. 'anchors')
for new, old in pairs({{[sums] = 'totals', [anchors] = 'anchors'}}) do
  if redis.call('EXISTS', new) == 1 then
    redis.call('PERSIST', new)
    redis.call('RENAME', new, base .. old)
  end
end
if age then
  redis.call('HSET', base .. 'totals', 'age', age)
end
return 0
"""
)


def recount(server: Server, base: str) -> None:
    """Sum the totals and anchors of the shard of `base` anew; raises as `Server.run`."""
    begin, more = 1, True
    while more:
        (more,) = server.run([call(COUNT, base, "", STEP, begin, KEPT_MS)])
        begin = 0
