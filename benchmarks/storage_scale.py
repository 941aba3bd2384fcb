"""What grows with a store: lookups, puts and eviction at 10^3, 10^5 and (``--full``) 10^6 entries.

On files, PostgreSQL and Redis, each on stores of its own that are filled past the backend, with
entries of one byte. The calls on the stores of one kind are timed in turn, so that a busy machine
is as busy for each. A lookup asks for as many keys as a prompt has chunks of 256 tokens, new ones
every time, in stretches that none is stored of; "hit" is the shallowest alone. An eviction removes
entries whose blobs are there, lowest score first; "judged" is one, the least of a sample.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, insert, make_url

from benchmarks import redis_scale
from benchmarks.bench_file_backend import CREATED_AT, a_key, an_entry
from benchmarks.servers import (
    MISSING,
    create_database,
    has_redis,
    postgres_binaries,
    private_postgres,
    private_redis,
)
from benchmarks.stats import Timing, alternate, timed
from benchmarks.storage_fetch import GUARD
from statestore import open_store
from statestore.backends.base import Backend
from statestore.backends.redis.address import Address
from statestore.backends.sql import totals
from statestore.backends.sql.database import Database
from statestore.backends.sql.file import BLOBS, CATALOG
from statestore.backends.sql.postgres import open_for_migration
from statestore.backends.sql.rows import to_row
from statestore.backends.sql.sqlite import open_database
from statestore.entry import Entry, Evicted
from statestore.eviction import make_policy
from statestore.keys import StateKey
from statestore.keys.plan import STRETCH
from statestore.tables import ONLY_ON
from statestore.tables import entries as table

PROMPTS = {"1 k tokens": 4, "32 k tokens": 128, "1 M tokens": 3906}  # keys
EVICTED = 256
KINDS = ("file", "postgres", "redis")

_BATCH = 2000  # rows of one statement while a catalog is filled


@dataclass(frozen=True, slots=True)
class Filled:
    """A store of `entries` entries, and how to add such whose score is below all others."""

    entries: int
    backend: Backend
    add: Callable[[Sequence[Entry]], None]
    key: Callable[[int], StateKey] = a_key  # of the stored entries 0, 1, ...


@click.command()
@click.option("--full", is_flag=True, help="10^6 entries too: some minutes more.")
@click.option("--runs", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), default=None)
def main(full: bool, runs: int, kinds: tuple[str, ...], directory: Path | None) -> None:
    """Fill stores and time calls on them."""
    sizes = (10**3, 10**5, 10**6) if full else (10**3, 10**5)
    opened = {"file": files, "postgres": databases, "redis": redises}
    for kind in kinds:
        with tempfile.TemporaryDirectory(dir=directory) as scratch, ExitStack() as stack:
            stores = list(opened[kind](Path(scratch), sizes, stack))
            if stores:
                often = {name: thing for store in stores for name, thing in calls(store)}
                seldom = {name: thing for store in stores for name, thing in evictions(store)}
                timings = alternate(runs, often) | alternate(max(5, runs // 20), seldom)
                report(kind, sizes, timings)


def files(root: Path, sizes: Sequence[int], stack: ExitStack) -> Iterator[Filled]:
    """Stores in directories."""
    for size in sizes:
        place = root / str(size)
        store = stack.enter_context(open_store(place.as_uri()))
        database = stack.enter_context(closing(open_database(place / CATALOG, 60.0)))
        fill(database, size)
        store.sweep()  # makes its lookup filter
        yield Filled(size, store.backend, partial(add, database, place / BLOBS))


def databases(root: Path, sizes: Sequence[int], stack: ExitStack) -> Iterator[Filled]:
    """Stores on one PostgreSQL server, a database each."""
    if postgres_binaries() is None:
        click.echo(MISSING.format("PostgreSQL"))
        return
    server = stack.enter_context(private_postgres())
    for size in sizes:
        url, blobs = create_database(server, f"scale{size}"), root / str(size)
        database = stack.enter_context(closing(open_for_migration(make_url(url))))
        store = stack.enter_context(
            open_store(f"{url}?blobs={blobs.as_uri()}&timeout_s=60&{GUARD}")
        )
        fill(database, size)
        database.write(lambda tx: tx.exec_driver_sql("ANALYZE"))
        yield Filled(size, store.backend, partial(add, database, blobs))


def redises(_: Path, sizes: Sequence[int], stack: ExitStack) -> Iterator[Filled]:
    """Stores on a Redis each."""
    if not has_redis():
        click.echo(MISSING.format("redis-server"))
        return
    for size in sizes:
        port = stack.enter_context(private_redis())
        store = stack.enter_context(open_store(f"redis://127.0.0.1:{port}?{GUARD}"))
        redis_scale.fill(Address.of("redis", f"127.0.0.1:{port}", "", {}), size)

        def publish_all(added: Sequence[Entry], backend: Backend = store.backend) -> None:
            for entry in added:
                backend.publish(entry, [b"!"])

        yield Filled(size, store.backend, publish_all, redis_scale.filled_key)


def fill(database: Database, size: int) -> None:
    """Insert the rows of entries 0, 1, ... and what is summed over them; their blobs are not.

    The indexes are made afterwards, in one go each.
    """

    def work(tx: Connection) -> None:
        here = (None, tx.dialect.name)
        indexes = [index for index in table.indexes if index.info.get(ONLY_ON) in here]
        for index in indexes:
            index.drop(tx)
        for first in range(0, size, _BATCH):
            numbers = range(first, min(first + _BATCH, size))
            insert_rows(tx, [an_entry(number, 1) for number in numbers])
        for index in indexes:
            index.create(tx)

    database.write(work)


def add(database: Database, blobs: Path, added: Sequence[Entry]) -> None:
    """Insert rows, and write their blobs without waiting for the disk."""
    for entry in added:
        path = blobs / entry.blob[:2] / entry.blob
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"!")
    database.write(lambda tx: insert_rows(tx, added))


def insert_rows(tx: Connection, added: Sequence[Entry]) -> None:
    """As a put's, but for many."""
    tx.execute(insert(table), [to_row(entry) for entry in added])
    totals.account(tx, before=[], after=added)


def calls(store: Filled) -> Iterator[tuple[str, Callable[[], float]]]:
    """What is timed often on one store."""
    numbers = count(10**8)
    spread = everywhere(store.entries)

    def find(keys: int, *, stored: bool) -> float:
        asked = [a_key(next(numbers)) for _ in range(keys - stored)]
        asked += [store.key(next(spread))] if stored else []
        asked = along_a_prompt(asked)
        found: list[Entry | None] = []
        took = timed(lambda: found.append(store.backend.longest(asked, CREATED_AT)))
        assert (found[0] is not None) is stored
        return took

    def touch() -> float:
        entry = replace(an_entry(0, 1), key=store.key(next(spread)))
        return timed(lambda: store.backend.touch(entry, CREATED_AT, 0.0))

    def put() -> float:
        entry = an_entry(next(numbers), 1)
        return timed(lambda: store.backend.publish(entry, [b"!"]))

    for name, keys in PROMPTS.items():
        yield f"find, {name}, miss|{store.entries}", partial(find, keys, stored=False)
        yield f"find, {name}, hit|{store.entries}", partial(find, keys, stored=True)
    yield f"touch|{store.entries}", touch
    yield f"usage|{store.entries}", lambda: timed(store.backend.usage)
    yield f"put, 1 byte|{store.entries}", put


def evictions(store: Filled) -> Iterator[tuple[str, Callable[[], float]]]:
    """Eviction: what goes is put there first, untimed, so that the store keeps its size."""
    numbers = count(10**9)

    def evict() -> float:
        going = [an_entry(next(numbers), 1) for _ in range(EVICTED)]
        store.add([replace(entry, score=-1e9 - entry.key.n_tokens) for entry in going])
        over = store.backend.usage().blob_bytes - EVICTED
        gone: list[Evicted] = []
        took = timed(lambda: gone.append(store.backend.evict(over, CREATED_AT, limit=EVICTED)))
        assert gone[0].entries == EVICTED
        return took

    policy = make_policy()

    def judge() -> float:
        """One goes, the least of a sample: what a put into a full store costs beside the put."""
        over = store.backend.usage().blob_bytes - 1
        gone: list[Evicted] = []
        took = timed(
            lambda: gone.append(store.backend.evict(over, CREATED_AT + 100, judge=policy.judge))
        )
        assert gone[0].entries == 1
        return took

    yield f"evict {EVICTED}|{store.entries}", evict
    yield f"evict 1, judged|{store.entries}", judge


def along_a_prompt(keys: Sequence[StateKey]) -> list[StateKey]:
    """`keys`, deepest first, each with the anchor of the shallowest of its stretch."""
    last = len(keys) - 1
    heads = [last - (last - place) // STRETCH * STRETCH for place in range(len(keys))]
    return [replace(key, anchor=keys[head].anchor) for key, head in zip(keys, heads, strict=True)]


def everywhere(entries: int) -> Iterator[int]:
    """Numbers of entries from all over the store."""
    return (step * 7919 % entries for step in count())


def report(kind: str, sizes: Sequence[int], timings: dict[str, Timing]) -> None:
    """One row for each call: median and p99 at every size, and how far the last grew."""
    columns = [f"{size:,}: median, p90, p99 ms" for size in sizes]
    table = Table("call", *columns, "growth: median", "p99", title=kind)
    for name in dict.fromkeys(key.partition("|")[0] for key in timings):
        found = [timings[f"{name}|{size}"] for size in sizes]
        first, last = found[0], found[-1]
        table.add_row(
            name,
            *(", ".join(one.milliseconds()) for one in found),
            f"{last.median_s / first.median_s:.2f}",
            f"{last.p99_s / first.p99_s:.2f}",
        )
    console = Console(width=140)
    console.print(table)
    puts = timings[f"put, 1 byte|{sizes[-1]}"]
    console.print(f"{1 / puts.median_s:,.0f} puts per second, one after the other")


if __name__ == "__main__":
    main()
