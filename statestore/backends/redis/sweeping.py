"""What an operator's sweep removes and mends.

* Entries that have expired, with their blobs.
* Orphans: parts that no entry names. A writer that died leaves parts that expire by themselves;
  parts that do not expire and have no entry are what is left where the server evicted the entry.
* What the server's eviction put out of step: entries still counted, orders without their entries.

It reads the name of every key below the prefix, in steps that keep nobody waiting.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

from statestore.backends.base import Swept
from statestore.backends.redis import mending, scripts
from statestore.backends.redis.evicting import LINGER_MOST_MS
from statestore.backends.redis.keyspace import DIGEST_DIGITS, Keyspace, entry_in, part_in
from statestore.backends.redis.parts import UNPUBLISHED_S
from statestore.backends.redis.recounting import recount
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import call

T = TypeVar("T")

_BATCH: Final = 256  # keys or entries of one round trip
_ORDERS: Final = ("order", "barred", "expiry", "tokens", "ranks")  # beside ``used``


class Sweep:
    """One sweep; `run` does it.

    Args:
        server: where.
        keyspace: the names there.
        now: entries that expired by then go.
        grace_s: unpublished parts older than this go.
        clock_s: the time that dates removals.
    """

    def __init__(
        self, server: Server, keyspace: Keyspace, now: float, grace_s: float, clock_s: float
    ) -> None:
        self._server = server
        self._keyspace = keyspace
        self._now = repr(float(now))
        self._grace_ms = int(min(max(0.0, grace_s), 1e9) * 1000)
        self._clock_s = clock_s
        self._blobs: set[str] = set()
        self._bytes = 0

    def run(self) -> Swept:
        """Do it; what was removed. Raises as `Server.run`."""
        expired = sum(self._drop_expired(base) for base in self._keyspace.bases())
        for keys in _batches(self._server.scan(self._keyspace.pattern), _BATCH):
            self._drop_orphans(keys)
            self._rearrange(keys)
        for base in self._keyspace.bases():
            self._mend(base)
        return Swept(blobs=len(self._blobs), blob_bytes=self._bytes, expired=expired)

    def _drop_expired(self, base: str) -> int:
        """Remove a shard's expired entries; their number."""
        count = 0
        look = ("ZRANGEBYSCORE", f"{base}expiry", "-inf", self._now, "LIMIT", 0, _BATCH)
        while found := self._server.run([look])[0]:
            drops = [
                scripts.removal(
                    base,
                    one.decode(),
                    "expired",
                    self._clock_s,
                    self._keyspace.shards,
                    expired_by=self._now,
                )
                for one in found
            ]
            for gone in self._server.run(drops):
                if gone is not None:
                    count += 1
                    self._count(gone[1].decode(), gone[0], int(gone[2]))
        return count

    def _drop_orphans(self, keys: list[str]) -> None:
        """Remove the parts among `keys` that no entry names."""
        parts: dict[tuple[str, str], list[int]] = defaultdict(list)
        for part in filter(None, map(part_in, keys)):
            parts[part.base, part.blob].append(part.number)
        checks = [
            call(
                mending.ORPHAN,
                base,
                blob[:DIGEST_DIGITS],
                blob,
                UNPUBLISHED_S * 1000,
                self._grace_ms,
                LINGER_MOST_MS,
                *indexes,
            )
            for (base, blob), indexes in parts.items()
        ]
        for (_, blob), gone in zip(parts, self._server.run(checks), strict=True):
            if gone is not None:
                self._count(blob, gone[0], gone[1])

    def _rearrange(self, keys: list[str]) -> None:
        """Put the entries among `keys` into their orders again where those were evicted."""
        found = filter(None, map(entry_in, keys))
        self._server.run([call(mending.REARRANGE, base, digest) for base, digest in found])

    def _mend(self, base: str) -> None:
        """Sum a shard's totals anew if they, or its orders, do not tell what is there."""
        gone = self._weed(base, "used")
        if gone or not self._server.run([call(mending.AGREES, base, "")])[0]:
            for order in _ORDERS:
                self._weed(base, order)
            recount(self._server, base)

    def _weed(self, base: str, order: str) -> int:
        """Strike off what one of a shard's orders has without an entry; how many that were."""
        return sum(
            self._server.run([call(mending.WEED, base, "", order, *members)])[0]
            for members in _batches(self._server.members(f"{base}{order}"), _BATCH)
        )

    def _count(self, blob: str, parts: int, size: int) -> None:
        if parts:
            self._blobs.add(blob)
            self._bytes += size


def _batches(things: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(things)
    while batch := list(islice(rest, size)):
        yield batch
