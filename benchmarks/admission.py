"""What admission and policy cost each request, with 10^6 prefixes seen and (``--entries``) stored.

Counted in CPU time of this process: for a file that is all; what a server does comes on top, and is
in the wall time. A request is a prompt of so many chunks of which nothing is stored and a half was
seen before: the dearest. In its way are

    look      the question how far it was seen is put,
    answer    what is left of the wait for it once the turn at its end was taken,
    rule      `to_save`,
    policy    sees the lookup.

`turn` is what each such request pays, the lease and a second lookup; `turn alone` the same with
nothing beside it, and `asked alone` the question waited for. Behind the answer are the note of
what was new, and the scores of a hit and of two puts. Where entries are stored, room is made for
one: the least of a sample goes.

    python -m benchmarks.admission --entries 1000000
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url

from benchmarks.servers import (
    create_database,
    has_redis,
    postgres_binaries,
    private_postgres,
    private_redis,
)
from benchmarks.storage_fetch import GUARD
from benchmarks.storage_scale import fill
from rwkv_runtime.session.admission import Admission
from rwkv_runtime.session.checkpoints import to_save
from rwkv_runtime.session.forks import Forks, Sight
from rwkv_runtime.session.pace import Costs
from statestore import open_store
from statestore.backends.sightings import SIGHTINGS, sightings_of
from statestore.backends.sql.file import CATALOG
from statestore.backends.sql.postgres import open_for_migration
from statestore.backends.sql.sqlite import open_database
from statestore.eviction import make_policy
from statestore.keys import ChunkRule, KeyedBoundary, Namespace, Plan, Role, marks, plan
from statestore.once import Once
from statestore.simulate.replay import an_entry
from statestore.store import Identity, StateStore

KINDS = ("memory", "file", "postgres", "redis")
RULE = ChunkRule()
COSTS = Costs(token_s=0.001, fetch_s=0.005)

T = TypeVar("T")


class Clocked:
    """CPU and wall seconds of calls, by name."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}
        self.wall: dict[str, list[float]] = {}

    def __call__(self, name: str, work: Callable[[], T]) -> T:
        """The result of `work`."""
        began, began_cpu = time.perf_counter(), time.process_time()
        result = work()
        self.cpu.setdefault(name, []).append(time.process_time() - began_cpu)
        self.wall.setdefault(name, []).append(time.perf_counter() - began)
        return result


@click.command()
@click.option(
    "--entries",
    type=click.IntRange(min=0),
    default=0,
    help="In the catalogs of files and PostgreSQL.",
)
@click.option("--chunks", type=click.IntRange(min=2), default=48, show_default=True)
@click.option("--runs", type=click.IntRange(min=10), default=300, show_default=True)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), default=KINDS)
def main(entries: int, chunks: int, runs: int, kinds: tuple[str, ...]) -> None:
    """Fill stores and time what a request adds to them."""
    table = Table("store", "what", "CPU ms, median", "p99", "wall ms, median", "p99")
    for kind in kinds:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            store = opened(kind, Path(scratch), stack, entries)
            if store is None:
                continue
            clocked = measured(store, chunks, runs)
            for name in clocked.cpu:
                columns = [*spread(clocked.cpu[name]), *spread(clocked.wall[name])]
                table.add_row(kind, name, *(f"{1000 * seconds:.3f}" for seconds in columns))
    Console().print(table)


def opened(kind: str, root: Path, stack: ExitStack, entries: int) -> StateStore | None:
    """A store of this kind whose index is full; ``None``: no such server is installed."""
    if kind == "memory":
        url = "memory:"
    elif kind == "file":
        open_store(root.as_uri()).close()
        database = open_database(root / CATALOG, 60.0)
        if entries:
            fill(database, entries)
        database.close()
        url = root.as_uri()
    elif kind == "postgres" and postgres_binaries() is not None:
        server = stack.enter_context(private_postgres())
        address = create_database(server, "admission")
        url = f"{address}?blobs={(root / 'blobs').as_uri()}&{GUARD}"
        open_store(url).close()
        with closing(open_for_migration(make_url(address))) as catalog:
            fill(catalog, entries)
            catalog.write(lambda tx: tx.exec_driver_sql("ANALYZE"))
    elif kind == "redis" and has_redis():
        url = f"redis://127.0.0.1:{stack.enter_context(private_redis())}?{GUARD}"
    else:
        return None
    store = stack.enter_context(open_store(url))
    index = sightings_of(store.backend)
    assert index is not None
    for first in range(0, SIGHTINGS, 1024):
        index.note(marks([digest(number) for number in range(first, first + 1024)]))
    return store


def digest(number: int) -> bytes:
    """Of a prefix that somebody saw."""
    return hashlib.sha256(b"%d" % number).digest()


def prompts(chunks: int) -> Iterator[Plan]:
    """Prompts that share their first half, and have half a chunk beyond the last."""
    shared = [1] * (RULE.chunk * (chunks // 2))
    for number in count(1):
        tail = [number % 60_000 + 2] * (RULE.chunk * (chunks - chunks // 2) + RULE.chunk // 2)
        yield plan([[*shared, *tail]], bytes(32), RULE)


def measured(store: StateStore, chunks: int, runs: int) -> Clocked:
    """The parts of so many requests."""
    clocked, forks, policy = Clocked(), Forks(store, Admission()), make_policy()
    once = Once[object](lambda: store.leases)
    for number, prompt in zip(range(70_000), prompts(2), strict=False):  # what it remembers at most
        policy.put(an_entry(prompt.keys[-1], Role.PROMPT, 0, float(number)), 0.0, float(number))
    for number, prompt in zip(range(runs), prompts(chunks), strict=False):
        now = 70_000.0 + number

        def request(prompt: Plan = prompt, now: float = now) -> None:
            end = prompt.boundaries[-1]
            look = clocked("look", lambda: forks.look(prompt, 0, Namespace()))
            clocked("turn", lambda: turn(store, once, end))
            sight = clocked("answer", lambda: look.sight)
            saved = clocked(
                "rule",
                lambda: list(to_save(prompt, 0, 0, Admission(), COSTS, fork=sight.fork)),
            )
            entries = [an_entry(b.key, b.role, 0, now) for b in saved]
            clocked("policy", lambda: policy.seen(prompt.keys_deepest_first, None, now))
            clocked("scores", lambda: [policy.put(entry, now - 60, now) for entry in entries])
            clocked("note", lambda: forks.note(look))
            if held := store.usage().blob_bytes:
                clocked("room", lambda: store.backend.evict(held - 1, now, judge=policy.judge))

        clocked("all", request)
        clocked("asked alone", partial(asked, forks, prompt))
        clocked("turn alone", partial(turn, store, once, prompt.boundaries[-1]))
    return clocked


def asked(forks: Forks, prompt: Plan) -> Sight:
    """The answer, waited for."""
    return forks.look(prompt, 0, Namespace()).sight


def turn(store: StateStore, once: Once[object], end: KeyedBoundary) -> None:
    """What a reading does before it computes up to `end`."""
    taken = once.join(end.key)
    store.find(Identity(bytes(32), "default"), [end.key], touch=False)
    taken.abandon()


def spread(seconds: list[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    return median(seconds), quantiles(seconds, n=100)[98]


if __name__ == "__main__":
    main()
