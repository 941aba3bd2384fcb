"""The longest stored prefix: one script, in a Cluster one on each shard that a key may lie on.

What an absent key costs the server is its place in a table as large as the store, in no cache. So
one server, asked for `LONG` keys and more, first looks up which of the prompt's stretches have any
entry (`StateKey.anchor`): 62 fields for a million tokens, and only the keys of those that are
there. A shard of a Cluster is asked for a few keys of each stretch, and for all of them.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from statestore.backends.base import NotAtHandError
from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.rows import pack_anchor, to_entry
from statestore.backends.redis.scripts import longest
from statestore.backends.redis.server import Server
from statestore.entry import Entry
from statestore.keys import StateKey

LONG: Final = 16  # keys; fewer are asked for as quickly
LEAST: Final = 4  # keys to a run
MOST: Final = 4096  # runs: arguments that a call in Lua can have

_ANCHOR: Final = attrgetter("anchor")


class Search:
    """Lookups in one store. Safe to use from several threads.

    Args:
        server: where.
        keyspace: the names there.
    """

    def __init__(self, server: Server, keyspace: Keyspace) -> None:
        self._server = server
        self._keyspace = keyspace

    def longest(
        self, keys: Sequence[StateKey], now: float, limit_s: float | None = None
    ) -> Entry | None:
        """The first of `keys` that is stored, ready and not expired at `now`; one round trip.

        Within `limit_s`, if given; raises as `Server.ask`.
        """
        until = None if limit_s is None else time.monotonic() + limit_s
        start = 0
        while True:
            found = self._first(keys[start:], now, until)
            if found is None:
                return None
            place, row = found
            entry = to_entry(row)
            if entry is not None and entry.key == keys[start + place]:
                return entry
            start += place + 1  # damaged, or the same digest after another number of tokens

    def _first(
        self, keys: Sequence[StateKey], now: float, until: float | None
    ) -> tuple[int, list[Any]] | None:
        """The first usable entry with the digest of one of `keys`: its key's place, its fields."""
        if self._keyspace.shards == 1 and keys:
            runs = stretches(keys)
            digests = [key.digest for key in keys]
            command = longest(self._keyspace.base_of(0), digests, now, runs)
            return self._server.ask(command, until) or None
        return self._fan_out(keys, now, until)

    def _fan_out(
        self, keys: Sequence[StateKey], now: float, until: float | None
    ) -> tuple[int, list[Any]] | None:
        shards: dict[int, list[int]] = defaultdict(list)
        for place, key in enumerate(keys):
            shards[key.digest[0] % self._keyspace.shards].append(place)
        commands = [
            longest(self._keyspace.base_of(shard), [keys[place].digest for place in places], now)
            for shard, places in shards.items()
        ]
        if until is not None:
            raise NotAtHandError
        answers = self._server.run(commands, moving_ok=True)
        replies = zip(shards.values(), answers, strict=True)
        return min(
            ((places[reply[0]], reply[1]) for places, reply in replies if reply), default=None
        )


def stretches(keys: Sequence[StateKey]) -> list[tuple[bytes, int]]:
    """The anchor of each run of `keys` that share one, and the place where the run begins; none
    where some key's is not known, and of few keys, or few to a run.
    """
    if len(keys) < LONG:
        return []
    runs: list[tuple[bytes, int]] = []
    place = 0
    for anchor, run in groupby(map(_ANCHOR, keys)):
        if anchor is None:
            return []
        runs.append((pack_anchor(anchor), place))
        place += sum(1 for _ in run)
    return runs if len(runs) * LEAST <= place and len(runs) <= MOST else []
