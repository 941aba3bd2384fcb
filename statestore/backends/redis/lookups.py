"""The tally of lookups in Redis: one hash, on the first shard.

Its fields are ``<sum>:<fingerprint>:<tier>:<namespace>``, one for each of a row's sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from statestore.backends.fields import check_text
from statestore.backends.lookups import ROWS, LookupSums, Whose
from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.rows import number
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import Command

_COUNTS: Final = ("lookups", "found", "tokens_asked", "tokens_found")
_STEP: Final = 128  # rows of one command: the server is not kept for longer than a millisecond

#: ARGV: rows; then for each whose it is, that of the rest, since, seconds, the counts. What is no
#: hash under this name is nothing of a store's: it makes way.
ADD: Final = """
local name, most = KEYS[1], tonumber(ARGV[1])
local COUNTS = {'lookups', 'found', 'tokens_asked', 'tokens_found'}
if redis.call('TYPE', name).ok ~= 'hash' then
  redis.call('UNLINK', name)
end
for i = 2, #ARGV, 8 do
  local whose = ARGV[i]
  if redis.call('HEXISTS', name, 'since:' .. whose) == 0
    and redis.call('HLEN', name) >= most * 6 then
    whose = ARGV[i + 1]
  end
  redis.call('HSETNX', name, 'since:' .. whose, ARGV[i + 2])
  redis.call('HINCRBYFLOAT', name, 'seconds_found:' .. whose, ARGV[i + 3])
  for j, count in ipairs(COUNTS) do
    redis.call('HINCRBY', name, count .. ':' .. whose, ARGV[i + 3 + j])
  end
end
return 1
"""

#: The hash's fields and values, in turn; none where something else has the name.
SUMS: Final = """
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  return {}
end
return redis.call('HGETALL', KEYS[1])
"""


class RedisLookups:
    """As the port says.

    Args:
        server: where.
        keyspace: names the key.
        rows: that are kept.
    """

    lasting: Final = True

    def __init__(self, server: Server, keyspace: Keyspace, rows: int = ROWS) -> None:
        self._server = server
        self._name = keyspace.lookups
        self._rows = rows

    def add(self, sums: Sequence[LookupSums]) -> None:
        """As the port says; one round trip."""
        steps = [sums[first : first + _STEP] for first in range(0, len(sums), _STEP)]
        self._server.run([self._command(step) for step in steps])

    def sums(self, namespace: str | None = None) -> list[LookupSums]:
        """As the port says; one round trip."""
        (flat,) = self._server.run([("EVAL", SUMS, 1, self._name)])
        rows: dict[Whose, dict[str, Any]] = defaultdict(dict)
        for field, value in zip(flat[::2], flat[1::2], strict=True):
            read = _read(field, value)
            if read is not None and namespace in (None, read[0][1]):
                whose, sum_, amount = read
                rows[whose][sum_] = amount
        return [LookupSums(*whose, **given) for whose, given in rows.items()]

    def _command(self, sums: Sequence[LookupSums]) -> Command:
        rows = [
            argument
            for one in sums
            for argument in (
                _name(one),
                _name(one.rest),
                number(one.since, "since"),
                number(one.seconds_found, "seconds_found"),
                *(getattr(one, count) for count in _COUNTS),
            )
        ]
        return ("EVAL", ADD, 1, self._name, self._rows, *rows)


def _name(one: LookupSums) -> str:
    return f"{one.fingerprint.hex()}:{one.tier}:{check_text(one.namespace, 'namespace')}"


def _read(field: bytes, value: bytes) -> tuple[Whose, str, float] | None:
    """Whose sum a field is, the sum's name and the sum; ``None``: it is none of ours."""
    try:
        sum_, fingerprint, tier, namespace = field.decode().split(":", 3)
        whose = (tier, namespace, bytes.fromhex(fingerprint))
        if sum_ in _COUNTS:
            return whose, sum_, int(value)
        return (whose, sum_, float(value)) if sum_ in ("since", "seconds_found") else None
    except ValueError:  # a hand's
        return None
