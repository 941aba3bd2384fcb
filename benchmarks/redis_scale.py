"""Redis calls over stores of 10^3, 10^5 and 10^6 entries, each on a private server of its own.

The stores are filled with entries whose blobs are one byte, by a script; a million take about 3 GB.
The calls on the three are timed in turn, so that a busy machine is as busy for each. A lookup asks
for as many keys as a prompt has chunks of 256 tokens; "hit" is the shallowest alone, so that every
stretch of them is looked at, and what it finds is checked. No two entries share an anchor, which
is the dearest case.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import count

import click
from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.bench_file_backend import CREATED_AT, a_key, an_entry
from benchmarks.redis_fetch import private_server
from benchmarks.stats import Timing, alternate, timed
from statestore.backends.leases import Outcome
from statestore.backends.redis.address import Address
from statestore.backends.redis.backend import RedisBackend, open_redis_backend
from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.rows import to_fields
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import SHARD, call
from statestore.entry import Entry
from statestore.keys import StateKey
from statestore.keys.plan import anchors

PROMPTS = {"1 k tokens": 4, "32 k tokens": 128, "1 M tokens": 3906}  # keys
EVICTED = 256
TTL_S = 60.0

_FILL_S = 60.0  # for one step of filling
_BATCH = 500  # entries of one step while it is filled

#: ARGV: base, '', first and last number, fields that all share.
_FILL = (
    SHARD
    + """
local shared = {unpack(ARGV, 5)}
for number = tonumber(ARGV[3]), tonumber(ARGV[4]) do
  local half = redis.sha1hex(string.format('%d', number))
  local id = half .. half:sub(1, 24)
  local bytes = id:gsub('..', function(hex) return string.char(tonumber(hex, 16)) end)
  local key, kept = base .. 'entry:' .. id, '-1.0123456789abcdef'
  redis.call('HSET', key, unpack(shared))
  redis.call('HSET', key, 'digest', bytes, 'token_digest', bytes, 'blob', kept, 'n_tokens', 1)
  redis.call('HSET', key, 'used_at', number, 'score', number, 'anchor', bytes:sub(1, 8))
  redis.call('HSET', base .. 'anchors', bytes:sub(1, 8), '#' .. bytes:sub(1, 4))
  redis.call('SET', names_part(id .. kept, 0), '!')
  arrange(key, id)
end
local count = ARGV[4] - ARGV[3] + 1
redis.call('HINCRBY', base .. 'anchors', '', count)
redis.call('HSET', base .. 'anchors', '#', 1)
for _, whose in ipairs({'', ':default'}) do
  add(base .. 'totals', whose, NONE, {count, count, count, 0, 0, 0})
end
"""
)


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--entries", multiple=True, type=click.IntRange(min=1), help="Sizes of stores.")
def main(runs: int, entries: tuple[int, ...]) -> None:
    """Fill private servers, and time lookups, eviction, puts, leases."""
    if shutil.which("redis-server") is None:
        click.echo("not run: no redis-server (make services installs it)")
        return
    sizes = entries or (10**3, 10**5, 10**6)
    with ExitStack() as stack:
        things: dict[str, Callable[[], float]] = {}
        memory: dict[int, int] = {}
        for size in sizes:
            port = stack.enter_context(private_server())
            address = Address.of("redis", f"127.0.0.1:{port}", "", {})
            backend = open_redis_backend(address)
            stack.callback(backend.close)
            fill(address, size)
            with Redis(port=port) as plain:
                memory[size] = int(plain.info("memory")["used_memory"])
            things |= {f"{name}|{size}": thing for name, thing in calls(backend, size).items()}
        report(sizes, memory, alternate(runs, things))


def filled_key(number: int) -> StateKey:
    """A key that a script can make as well."""
    half = hashlib.sha1(b"%d" % number, usedforsecurity=False).hexdigest()
    digest = bytes.fromhex(half + half[:24])
    return StateKey(digest, 1, *anchors([digest]))


def a_prompt(chain: list[StateKey]) -> list[StateKey]:
    """Keys, shallow first, as those of one prompt: in stretches, deepest first."""
    beside = anchors([key.digest for key in chain])
    return [replace(key, anchor=anchor) for key, anchor in zip(chain, beside, strict=True)][::-1]


def fill(address: Address, entries: int) -> None:
    """Store entries 0, 1, ... of one byte, past the backend: to publish a million takes long."""
    patient = replace(address, timeout_s=_FILL_S)  # a step takes long on a busy machine
    server, base = Server(patient), Keyspace(address.prefix, 1).base_of(0)
    fields = [piece for field in to_fields(an_entry(0, 1)).items() for piece in field]
    for first in range(0, entries, _BATCH):
        last = min(first + _BATCH, entries) - 1
        server.run([call(_FILL, base, "", first, last, "parts", 1, "n_tokens", 1, *fields)])
    server.close()


def calls(backend: RedisBackend, entries: int) -> dict[str, Callable[[], float]]:
    """What is timed on one store."""
    numbers = count(10**8)
    leases = backend.leases
    assert leases is not None
    spread = prompts(entries)

    def find(keys: int, *, stored: bool) -> float:
        shallowest = [filled_key(next(spread))] if stored else []
        asked = a_prompt([*shallowest, *(a_key(next(numbers)) for _ in range(keys - stored))])
        found: list[Entry | None] = []
        took = timed(lambda: found.append(backend.longest(asked, CREATED_AT)))
        if [one and one.key for one in found] != [shallowest[0] if stored else None]:
            raise RuntimeError(f"a lookup of {asked[-1]} among {entries} entries gave {found}")
        return took

    def touch() -> float:
        number = next(spread)
        entry = replace(an_entry(0, 1), key=filled_key(number))
        return timed(lambda: backend.touch(entry, CREATED_AT, float(number)))

    def put() -> float:
        entry = an_entry(next(numbers), 1)
        return timed(lambda: backend.publish(entry, [b"!"]))

    def evict() -> float:
        over = backend.usage().blob_bytes - min(EVICTED, entries // 4)
        took = timed(lambda: backend.evict(over, CREATED_AT, limit=EVICTED))
        fill_again(backend, numbers, min(EVICTED, entries // 4))
        return took

    def lease() -> float:
        key = a_key(next(numbers))

        def hold() -> None:
            leases.acquire(key, "owner", TTL_S)
            leases.release(key, "owner", Outcome.PUBLISHED)

        return timed(hold)

    things: dict[str, Callable[[], float]] = {}
    for name, keys in PROMPTS.items():
        things[f"find, {name}, miss"] = partial(find, keys, stored=False)
        things[f"find, {name}, hit"] = partial(find, keys, stored=True)
    return things | {
        "touch": touch,
        "usage": lambda: timed(backend.usage),
        "put, 1 byte": put,
        "lease and release": lease,
        f"evict {EVICTED} (or a quarter)": evict,
    }


def prompts(entries: int) -> Iterator[int]:
    """Entries from everywhere, but for the lowest scores, which are evicted first."""
    for step in count():
        yield entries // 2 + step * 7919 % (entries - entries // 2)


def fill_again(backend: RedisBackend, numbers: Iterator[int], entries: int) -> None:
    """Put back as many as an eviction took; their scores are below all others."""
    for _ in range(entries):
        backend.publish(an_entry(next(numbers), 1), [b"!"])


def report(sizes: tuple[int, ...], memory: dict[int, int], timings: dict[str, Timing]) -> None:
    """One row for each call: median and p99 at every size, and how far the last grew."""
    columns = [f"{size:,}: median, p99 ms" for size in sizes]
    table = Table("call", *columns, "p99, last to first")
    for name in dict.fromkeys(key.partition("|")[0] for key in timings):
        found = [timings[f"{name}|{size}"] for size in sizes]
        cells = [f"{one.median_s * 1e3:.2f}, {one.p99_s * 1e3:.2f}" for one in found]
        table.add_row(name, *cells, f"{found[-1].p99_s / found[0].p99_s:.2f}")
    console = Console(width=140)
    console.print(table)
    for size, used in memory.items():
        console.print(f"{size:,} entries: {used / 1e6:,.0f} MB, {used / size:,.0f} bytes each")


if __name__ == "__main__":
    main()
