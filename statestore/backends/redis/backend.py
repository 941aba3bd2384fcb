"""The port, on Redis.

Order of writes: parts first, each with an expiry; then one atomic step publishes the entry and
makes its parts permanent; an entry and its parts go in one step too. A writer that dies leaves
keys that expire, and nobody meets half a state: a part that the server dropped makes the blob a
miss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from heapq import merge
from operator import attrgetter
from typing import Any, Final

from statestore.backends.base import Blob, Follower, Swept
from statestore.backends.fields import check_text, hex_prefix, matches
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups
from statestore.backends.redis import parts, scripts
from statestore.backends.redis.address import Address
from statestore.backends.redis.connect import require_files
from statestore.backends.redis.evicting import Eviction
from statestore.backends.redis.keyspace import CLUSTER_SHARDS, DIGEST_DIGITS, Keyspace
from statestore.backends.redis.leases import RedisLeases
from statestore.backends.redis.lookups import RedisLookups
from statestore.backends.redis.recounting import recount
from statestore.backends.redis.rows import (
    FIELDS,
    Value,
    blob_of,
    changes,
    to_departed,
    to_entries,
    to_entry,
    touch_fields,
)
from statestore.backends.redis.search import Search
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import Command, call
from statestore.backends.redis.sightings import RedisSightings
from statestore.backends.redis.sweeping import Sweep
from statestore.backends.sightings import Sightings
from statestore.entry import Change, Departed, Entry, EntryFilter, Evicted, Status, Usage
from statestore.errors import BackendError, FullError, InputError, UnavailableError
from statestore.eviction.policy import Judge
from statestore.keys import StateKey

_PAGE: Final = 256  # entries of one read, over all shards
_NEWEST: Final = attrgetter("used_at", "key.digest")
_TOTALS: Final = ("entries", "blob_bytes", "state_bytes", "quarantined", "pinned", "pinned_bytes")


def open_redis_backend(address: Address) -> RedisBackend:
    """The store at `address`. Nothing is contacted before it is asked for something.

    Raises `SettingsError` where a file that the URL names cannot be read.
    """
    require_files(address)
    shards = CLUSTER_SHARDS if address.kind == "cluster" else 1
    return RedisBackend(Server(address), Keyspace(address.prefix, shards), address.url)


class RedisBackend:
    """A `Backend` on a Redis server.

    Args:
        server: the backend closes it.
        keyspace: the names there.
        url: opens this place again, without secrets.
        clock: seconds since the epoch; dates what is removed.
    """

    def __init__(
        self,
        server: Server,
        keyspace: Keyspace,
        url: str,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._server = server
        self._keyspace = keyspace
        self._url = url
        self._clock = clock
        self._search = Search(server, keyspace)
        self._leases = RedisLeases(server, keyspace)
        self._sightings = RedisSightings(server, keyspace)
        self._lookups = RedisLookups(server, keyspace)

    @property
    def url(self) -> str:
        """The URL that opens this place again."""
        return self._url

    @property
    def leases(self) -> Leases | None:
        """The rights to compute a key that are given out here."""
        return self._leases

    @property
    def sightings(self) -> Sightings | None:
        """The prefixes that were seen lately."""
        return self._sightings

    @property
    def lookups(self) -> Lookups | None:
        """The tally of lookups."""
        return self._lookups

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is stored, ready and not expired at `now`; one round trip."""
        return self._search.longest(keys, now)

    def longest_within(self, keys: Sequence[StateKey], now: float, limit_s: float) -> Entry | None:
        """As `longest`, in time; see `Punctual`."""
        return self._search.longest(keys, now, limit_s)

    def read(self, entry: Entry) -> memoryview | None:
        """The blob of `entry`, cut one byte beyond its size; ``None`` where a part has gone."""
        return parts.read(self._server, self._names(entry), entry.blob_bytes)

    def read_followed(self, entry: Entry, follower: Follower) -> memoryview | None:
        """As `read`; see `Arriving`."""
        return parts.read(self._server, self._names(entry), entry.blob_bytes, None, follower)

    def read_within(
        self, entry: Entry, limit_s: float, follower: Follower | None = None
    ) -> memoryview | None:
        """As `read`, in time; see `Punctual`."""
        until = time.monotonic() + limit_s
        return parts.read(self._server, self._names(entry), entry.blob_bytes, until, follower)

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:  # noqa: ARG002 - it always is
        """Store entry and blob, whole or not at all. ``False``: a usable entry was there first.

        Raises:
            InputError: the blob has not the size that the entry says, or a field cannot be stored.
        """
        size = sum(memoryview(buffer).nbytes for buffer in blob)
        if size != entry.blob_bytes:
            raise InputError(
                f"entry {entry.key} says blob_bytes={entry.blob_bytes}, but the blob has {size}"
            )
        command = scripts.publication(self._keyspace.base(entry.key.digest), entry)
        if self._is_stored(entry):
            return False
        try:
            parts.write(self._server, self._names(entry), blob)
            (outcome,) = self._server.run([command])
        except FullError:
            self._unlink(entry)  # room for others, sooner than the parts expire
            raise
        if outcome != scripts.PUBLISHED:
            self._unlink(entry)
        if outcome == scripts.LOST:
            raise UnavailableError(
                f"{self._url}: parts of {entry.key} had gone before it was whole: the server "
                "evicts them, was flushed, or the write took too long"
            )
        return bool(outcome == scripts.PUBLISHED)

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,
        *,
        memo: str | None = None,
        expires_at: float | None = None,
    ) -> None:
        """Count a hit: hits + 1, used_at, score. An entry that has gone is no error."""
        fields = touch_fields(now, score, memo, expires_at)
        flat = [piece for field in fields.items() for piece in field]
        self._server.run([self._call(scripts.TOUCH, entry.key, entry.key.n_tokens, *flat)])

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """Make the change, if the entry is there and (with `blob`) names that blob."""
        flat = [piece for field in changes(change).items() for piece in field]
        (changed,) = self._server.run(
            [self._call(scripts.UPDATE, key, key.n_tokens, blob or "", *flat)]
        )
        return bool(changed)

    def delete(self, key: StateKey, reason: str, *, blob: str | None = None) -> bool:
        """Remove entry and blob. ``False``: no such entry, or it names another blob."""
        command = scripts.removal(
            self._keyspace.base(key.digest),
            key.hex,
            check_text(reason, "reason"),
            self._clock(),
            self._keyspace.shards,
            n_tokens=key.n_tokens,
            blob=blob or "",
        )
        return self._server.run([command])[0] is not None

    def entries(self, where: EntryFilter) -> Iterator[Entry]:
        """Matching entries, newest use first, in pages; one used meanwhile may be missed."""
        prefix = hex_prefix(where)
        if len(prefix) == DIGEST_DIGITS or where.token_digest is not None:
            listed = iter(self._few(prefix, where.token_digest))
        else:
            listed = self._walk(prefix, where.used_before)
        return (entry for entry in listed if matches(entry, where))

    def departed(self, keys: Iterable[StateKey]) -> dict[StateKey, Departed]:
        """What is remembered of keys that were removed."""
        wanted = list(keys)
        kept = self._server.run(
            [("HGET", f"{self._keyspace.base(key.digest)}departed", key.hex) for key in wanted]
        )
        known = (to_departed(key, packed) for key, packed in zip(wanted, kept, strict=True))
        return {gone.key: gone for gone in known if gone is not None}

    def usage(self, namespace: str | None = None) -> Usage:
        """Totals over all entries, or over a namespace's; `Usage.age` is the whole store's."""
        whose = "" if namespace is None else f":{check_text(namespace, 'namespace')}"
        fields = [*(f"{total}{whose}" for total in _TOTALS), "age"]
        bases = list(self._keyspace.bases())
        commands = [scripts.totals(base, fields) for base in bases]
        rows = self._server.run(commands)
        lost = [base for base, (mark, *_) in zip(bases, rows, strict=True) if mark]
        if lost:
            for base in lost:
                recount(self._server, base)
            rows = self._server.run(commands)
        _, *columns, ages = zip(*rows, strict=True)
        sums = [max(0, sum(int(total or 0) for total in column)) for column in columns]
        known = dict(zip(_TOTALS, sums, strict=True))
        return Usage(**known, age=max(float(age or 0) for age in ages))

    def evict(
        self,
        to_bytes: int,
        now: float,
        *,
        namespace: str | None = None,
        limit: int = 256,
        judge: Judge | None = None,
    ) -> Evicted:
        """Remove unpinned entries, by score or as `judge` ranks, until `to_bytes` are left.

        Their blobs can be read for a moment after that; see `evicting`.
        """
        whose = None if namespace is None else check_text(namespace, "namespace")
        return Eviction(self._server, self._keyspace, now, whose, judge).run(to_bytes, limit)

    def sweep(self, now: float, grace_s: float) -> Swept:
        """Remove expired entries with their blobs, and parts older than `grace_s` without an entry.

        Entries that the server evicted by itself are no longer counted afterwards.
        """
        return Sweep(self._server, self._keyspace, now, grace_s, self._clock()).run()

    def close(self) -> None:
        """Release connections; a second call does nothing."""
        self._server.close()

    def _call(self, script: str, key: StateKey, *arguments: Value) -> Command:
        return call(script, self._keyspace.base(key.digest), key.hex, *arguments)

    def _is_stored(self, entry: Entry) -> bool:
        """Whether a usable entry is there already, so that the blob need not be written."""
        row = self._server.ask(("HMGET", self._keyspace.entry(entry.key.digest), *FIELDS))
        if not any(row):
            return False
        known = to_entry(row)
        if known is None:
            self._discard(entry.key, row)
            return False
        unexpired = known.expires_at is None or known.expires_at > entry.created_at
        return known.status is Status.READY and unexpired

    def _discard(self, key: StateKey, row: Sequence[Any]) -> None:
        """Remove a damaged entry, which is in a put's way, unless it was replaced."""
        command = scripts.removal(
            self._keyspace.base(key.digest),
            key.hex,
            "quarantined: damaged entry",
            self._clock(),
            self._keyspace.shards,
            blob=blob_of(key.digest, row[FIELDS.index("blob")] or b""),
        )
        self._server.run([command])

    def _names(self, entry: Entry) -> parts.Names:
        return partial(self._keyspace.part, entry.key.digest, entry.blob)

    def _unlink(self, entry: Entry) -> None:
        with suppress(BackendError):  # they expire
            parts.unlink(self._server, self._names(entry), entry.blob_bytes)

    def _few(self, digest: str, token_digest: bytes | None) -> list[Entry]:
        """The entry of `digest`, or those of the token digest, newest use first."""
        tokens = token_digest.hex() if token_digest is not None else ""
        commands = [
            call(scripts.ROWS, base, digest, tokens) for base in self._keyspace.bases(digest)
        ]
        found = to_entries([row for rows in self._server.run(commands) for row in rows])
        return sorted(found, key=_NEWEST, reverse=True)

    def _walk(self, prefix: str, used_before: float | None) -> Iterator[Entry]:
        """Entries in order of use, over the shards that may hold the prefix."""
        bases = list(self._keyspace.bases(prefix))
        size = max(16, _PAGE // len(bases))
        last = "" if used_before is None else repr(float(used_before))
        first = self._server.run([scripts.page(base, last, "", size) for base in bases])
        walks = [self._go_on(base, page, size) for base, page in zip(bases, first, strict=True)]
        return merge(*walks, key=_NEWEST, reverse=True)

    def _go_on(self, base: str, page: list[Any], size: int) -> Iterator[Entry]:
        """The entries of `page`, and of the pages after it."""
        while True:
            count, last, digest, rows = page
            yield from to_entries(rows)
            if count < size:
                return
            (page,) = self._server.run([scripts.page(base, last, digest, size)])
