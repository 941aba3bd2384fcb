"""Leases, on Redis: one string for each, which the server expires by its own clock.

    h <owner>   held
    p <owner>   released: published
    n <owner>   released: not stored

Each verb is one script on one key. A release is told on a channel, so that those who wait need not
ask; what no message tells (the owner died, a message was lost) they see when the lease should have
lapsed, and every few seconds. Where there is no connection to listen on they ask at jittered,
growing intervals. A failover may lose a lease: two then compute the same, which is allowed.
"""

from __future__ import annotations

import math
import random
import time
from functools import partial
from typing import Final

from statestore.backends.bell import Bell, Ear
from statestore.backends.leases import OUTCOME_S, Lease, Outcome
from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import Command
from statestore.errors import FullError, UnavailableError
from statestore.keys import StateKey

_TELLS: Final = {Outcome.PUBLISHED: "p", Outcome.NOT_STORED: "n"}
_OUTCOMES: Final = {"h": None, "p": Outcome.PUBLISHED, "n": Outcome.NOT_STORED}
_LOOK_AGAIN_S: Final = (1.0, 3.0)  # although one listens
_POLL_S: Final = (0.01, 0.25)  # the first and the longest interval where one cannot listen
_TTL_MOST_S: Final = 1e9

_dice: Final = random.Random()  # noqa: S311 - spreads callers in time, keeps no secret

#: ARGV: owner, ttl (ms). How the lease stands after that, and for how long (ms). What is no lease,
#: or would never expire, is nobody's: a hand left it there.
_ACQUIRE: Final = """
local held, left = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
if held and left >= 0 then
  local letter = held:match('^([hn]) .')
  if letter == 'n' or (letter == 'h' and held:sub(3) ~= ARGV[1]) then
    return {held, left}
  end
end
redis.call('SET', KEYS[1], 'h ' .. ARGV[1], 'PX', ARGV[2])
return {'h ' .. ARGV[1], tonumber(ARGV[2])}
"""

#: ARGV: owner, ttl (ms). 1 if it is held on to.
_RENEW: Final = """
if redis.call('GET', KEYS[1]) == 'h ' .. ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
"""

#: ARGV: owner, letter of the outcome, how long it is remembered (ms), channel, what is told there.
#: Removed first, so that a full server allows the rest; a user without rights to the channel
#: releases all the same.
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == 'h ' .. ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[2] .. ' ' .. ARGV[1], 'PX', ARGV[3])
  redis.pcall('PUBLISH', ARGV[4], ARGV[5])
end
return 0
"""

#: How the lease stands, and for how long (ms).
_LOOK: Final = """
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}
"""


class RedisLeases:
    """The port, on a server."""

    def __init__(self, server: Server, keyspace: Keyspace) -> None:
        self._server = server
        self._keyspace = keyspace
        self._bell = Bell(partial(server.listen, keyspace.releases))

    def acquire(self, key: StateKey, owner: str, ttl_s: float) -> Lease:
        """Take the lease on `key` if nobody holds it; how it stands after that."""
        command = self._call(_ACQUIRE, key, owner, _ms(ttl_s))
        try:
            lease = _to_lease(*self._server.run([command])[0])
        except FullError as error:  # without one it is computed, perhaps twice
            raise UnavailableError(str(error)) from error
        assert lease is not None
        return lease

    def renew(self, key: StateKey, owner: str, ttl_s: float) -> bool:
        """Hold on to it for `ttl_s` from now; ``False``: it lapsed or went to another."""
        return bool(self._server.run([self._call(_RENEW, key, owner, _ms(ttl_s))])[0])

    def release(self, key: StateKey, owner: str, outcome: Outcome) -> None:
        """Let go, leaving the outcome, and tell those who wait."""
        told = (_TELLS[outcome], _ms(OUTCOME_S), self._keyspace.releases, str(key))
        self._server.run([self._call(_RELEASE, key, owner, *told)])

    def wait(self, key: StateKey, timeout_s: float) -> Lease | None:
        """How the lease stands once it was released, lapsed or `timeout_s` passed; ``None``: free.

        One look that fails at once is made again, on another connection: a failover breaks
        every one.
        """
        until = time.monotonic() + timeout_s
        lease = self._look(key)
        if _is_over(lease, until):
            return lease
        with self._bell.ear(str(key)) as ear:
            pause_s = _POLL_S[0]
            while True:
                hears = self._bell.hears()
                lease = self._look_twice(key)
                if lease is None or _is_over(lease, until):
                    return lease
                pause_s = _dice.uniform(*_LOOK_AGAIN_S) if hears else _longer(pause_s)
                self._pause(ear, lease, until, pause_s)

    def _pause(self, ear: Ear, lease: Lease, until: float, pause_s: float) -> None:
        left_s = until - time.monotonic()
        self._bell.wait(ear, min(pause_s, left_s, lease.remaining_s + 0.001))

    def _look(self, key: StateKey) -> Lease | None:
        return _to_lease(*self._server.run([self._call(_LOOK, key)])[0])

    def _look_twice(self, key: StateKey) -> Lease | None:
        began = time.monotonic()
        try:
            return self._look(key)
        except UnavailableError:
            if time.monotonic() - began >= _POLL_S[1]:
                raise  # it hangs, and would hang again
            time.sleep(_dice.uniform(*_POLL_S))
            return self._look(key)

    def _call(self, script: str, key: StateKey, *arguments: str | int) -> Command:
        return ("EVAL", script, 1, self._keyspace.lease(key), *arguments)


def _to_lease(held: bytes | None, left_ms: int) -> Lease | None:
    """The lease; ``None``: there is none, or what only a hand can have left in its place."""
    letter, _, owner = (held or b"").decode(errors="replace").partition(" ")
    if letter not in _OUTCOMES or not owner or left_ms < 0:
        return None
    return Lease(owner, left_ms / 1000, _OUTCOMES[letter])


def _is_over(lease: Lease | None, until: float) -> bool:
    return lease is None or lease.outcome is not None or time.monotonic() >= until


def _longer(pause_s: float) -> float:
    """The interval after `pause_s`, somewhat longer and by chance."""
    return min(_POLL_S[1], pause_s * _dice.uniform(1.2, 2.0)) * _dice.uniform(0.7, 1.0)


def _ms(seconds: float) -> int:
    return max(1, math.ceil(min(seconds, _TTL_MOST_S) * 1000))
