"""The name of every key. Pure.

All keys begin ``<prefix>:1:{<tag>}:``, 1 being the layout's version. The tag in braces is what a
Cluster hashes: it is taken from the state's own digest, so an entry, its parts, and the totals and
orders that it is counted in lie in one slot and change in one atomic step. One server has one tag;
a Cluster has `CLUSTER_SHARDS`, which CRC16 spreads evenly over 2 to 16 nodes.

    entry:<digest>      hash     one entry, see `rows`
    part:<blob>:<i>     string   part i of a blob, see `parts`; expires until it is published
    used                zset     used_at -> digest: the order of a listing
    order               zset     score -> digest, what is ready and not pinned, in order of eviction
    barred              zset     score -> digest, what is quarantined and not pinned: goes before
    ranks               zset     0 -> namespace, class, score and digest of what is not pinned: the
                                 order of eviction in each namespace, see `shard`
    expiry              zset     expires_at -> digest, what expires
    tokens              zset     0 -> token digest and digest, to be found by its token digest
    totals              hash     sums over the shard's entries, over those of each namespace
                                 (``entries:<namespace>``), and the highest score evicted (``age``)
    departed            hash     digest -> what is remembered of a removed entry
    departures          zset     departed_at -> digest
    anchors             hash     which entries, or how many, are beside each anchor, see `sums`
    recount, recounted  hash     what will be totals and anchors, see `recounting`; expire
    sightings           string   the prefixes that were seen lately, on the first shard alone, see
                                 `sightings`; expires when it is not used
    lookups             hash     the tally of lookups, on the first shard alone, see `lookups`
    lease:<state key>   string   who computes it, or what came of that, see `leases`; expires

One name has no tag: ``<prefix>:1:released``, the channel where releases of leases are told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from statestore.keys import StateKey

CLUSTER_SHARDS: Final = 128
DIGEST_DIGITS: Final = 64

_LAYOUT: Final = 1
_PART: Final = re.compile(r"(.*:\{[0-9a-f]{2}\}:)part:([0-9a-z.-]+):([0-9]+)")
_ENTRY: Final = re.compile(r"(.*:\{[0-9a-f]{2}\}:)entry:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Names under one prefix, over a power of two of shards (at most 256)."""

    prefix: str
    shards: int

    def base(self, digest: bytes) -> str:
        """What the names of the digest's shard begin with."""
        return self.base_of(digest[0] % self.shards)

    def base_of(self, shard: int) -> str:
        """What the names of a shard begin with."""
        return f"{self.prefix}:{_LAYOUT}:{{{shard:02x}}}:"

    def entry(self, digest: bytes) -> str:
        """The key of an entry."""
        return f"{self.base(digest)}entry:{digest.hex()}"

    def part(self, digest: bytes, blob: str, index: int) -> str:
        """The key of one part of a blob."""
        return f"{self.base(digest)}part:{blob}:{index}"

    def lease(self, key: StateKey) -> str:
        """The key of a lease."""
        return f"{self.base(key.digest)}lease:{key}"

    @property
    def sightings(self) -> str:
        """The key of the index of seen prefixes."""
        return f"{self.base_of(0)}sightings"

    @property
    def lookups(self) -> str:
        """The key of the tally of lookups."""
        return f"{self.base_of(0)}lookups"

    @property
    def releases(self) -> str:
        """The channel where the keys of released leases are told."""
        return f"{self.prefix}:{_LAYOUT}:released"

    def bases(self, digest_prefix: str = "") -> Iterable[str]:
        """The shards that may hold digests beginning with these hex digits."""
        if len(digest_prefix) >= 2:
            return (self.base_of(int(digest_prefix[:2], 16) % self.shards),)
        return tuple(self.base_of(shard) for shard in range(self.shards))

    @property
    def pattern(self) -> str:
        """Matches every key, for ``SCAN``."""
        return f"{self.prefix}:{_LAYOUT}:{{*"


class Part(NamedTuple):
    """The pieces of a part's key."""

    base: str
    blob: str
    number: int


def part_in(key: str) -> Part | None:
    """The pieces of a part's key; ``None`` for another key."""
    match = _PART.fullmatch(key)
    return Part(match[1], match[2], int(match[3])) if match else None


def entry_in(key: str) -> tuple[str, str] | None:
    """The shard's base and the digest (hex) in an entry's key; ``None`` for another key."""
    match = _ENTRY.fullmatch(key)
    return (match[1], match[2]) if match else None
