"""The index of seen prefixes in Redis: one string of buckets, 4 MiB, that expires when unused.

Four bytes of a mark's own choose a bucket of 16 places, the next four are kept there, newest first;
so it is bounded, and the oldest sightings of a bucket go. In a Cluster it lies on one node:
a prompt's prefixes are looked up in one step.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import Command
from statestore.backends.sightings import BUCKET, PRINT, SIGHTINGS
from statestore.keys.second_sight import GROUP_BYTES

_UNUSED_S: Final = 30 * 24 * 3600  # a model that nobody asks for a month
_STEP: Final = 512  # sightings of one command: the server is not kept for longer than a millisecond

#: ARGV: buckets, marks without their groups, joined.
_BUCKETS: Final = f"""
local name, buckets, marks = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local PRINT, SIZE = {PRINT}, {BUCKET * PRINT}
local kind = redis.call('TYPE', name).ok
if kind ~= 'string' and kind ~= 'none' then
  redis.call('UNLINK', name) -- put there by a hand
end
local function bucket_of(place)
  return struct.unpack('>I{PRINT}', marks, (place - 1) * 2 * PRINT + 1) % buckets * SIZE
end
local function print_of(place)
  return marks:sub((place - 1) * 2 * PRINT + PRINT + 1, place * 2 * PRINT)
end
local function held(bucket, print)
  local prints = redis.call('GETRANGE', name, bucket, bucket + SIZE - 1)
  for first = 1, #prints, PRINT do
    if prints:sub(first, first + PRINT - 1) == print then
      return true, prints
    end
  end
  return false, prints
end
"""

#: How many of the marks, from the first on, are there.
SEEN: Final = (
    _BUCKETS
    + """
local low, high = 0, math.floor(#marks / (2 * PRINT))
while low < high do
  local middle = math.floor((low + high + 1) / 2)
  if held(bucket_of(middle), print_of(middle)) then
    low = middle
  else
    high = middle - 1
  end
end
return low
"""
)

#: ARGV: and seconds until it expires, unused.
NOTE: Final = (
    _BUCKETS
    + """
if redis.call('STRLEN', name) == 0 then
  redis.call('SETRANGE', name, buckets * SIZE - 1, '\\0')
end
for place = 1, #marks / (2 * PRINT) do
  local bucket, print = bucket_of(place), print_of(place)
  local there, prints = held(bucket, print)
  if not there then
    redis.call('SETRANGE', name, bucket, print .. prints:sub(1, SIZE - PRINT))
  end
end
redis.call('EXPIRE', name, ARGV[3])
return 1
"""
)


class RedisSightings:
    """As the port says.

    Args:
        server: where.
        keyspace: names the key.
        sightings: places for so many.
    """

    def __init__(self, server: Server, keyspace: Keyspace, sightings: int = SIGHTINGS) -> None:
        self._server = server
        self._name = keyspace.sightings
        self._buckets = max(1, sightings // BUCKET)

    def seen(self, marks: Sequence[bytes]) -> int:
        """As the port says; one round trip."""
        return self._seen(marks, None)

    def seen_within(self, marks: Sequence[bytes], limit_s: float) -> int:
        """As `seen`, in time; see `PunctualSightings`."""
        return self._seen(marks, time.monotonic() + limit_s)

    def _seen(self, marks: Sequence[bytes], until: float | None) -> int:
        return int(self._server.ask(self._command(SEEN, marks), until)) if marks else 0

    def note(self, marks: Sequence[bytes]) -> None:
        """As the port says; one round trip."""
        steps = [marks[first : first + _STEP] for first in range(0, len(marks), _STEP)]
        self._server.run([self._command(NOTE, step, _UNUSED_S) for step in steps])

    def _command(self, script: str, marks: Sequence[bytes], *arguments: int) -> Command:
        joined = b"".join(mark[GROUP_BYTES:] for mark in marks)
        return ("EVAL", script, 1, self._name, self._buckets, joined, *arguments)
