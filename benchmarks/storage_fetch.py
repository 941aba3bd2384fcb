"""Find and fetch of a state through a `StateStore`, beside reading the same bytes plainly.

Every store is opened by its URL, as a user would. Peers: one ``read`` of a file that holds the
state's bytes and nothing else, and one plain redis-py GET of them. The peers check nothing, decode
nothing and look nothing up; a find looks up a prompt's four keys, of which the last is stored, and
checks and decodes what it fetched. Puts are timed beside a bare durable write and a plain SET.
Of a place's codecs each is compared with raw; `auto` is settled before it is timed.

A plain read of a large state is mostly the making of memory to read into. One of a small state gets
memory that was just given back, so caches hold it; "plain readinto" has a buffer of its own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import click
from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.bench_codec import SHAPES, synthetic
from benchmarks.bench_file_backend import a_key, bare_write
from benchmarks.servers import (
    MISSING,
    create_database,
    has_redis,
    postgres_binaries,
    private_postgres,
    private_redis,
)
from benchmarks.stats import Timing, alternate, timed
from statestore import Identity, PutOutcome, Role, StateStore, open_store
from statestore.keys import StateKey
from statestore.schema import State

READ, GET, WRITE, SET = "plain read", "plain GET", "bare write", "plain SET"
READ_INTO = "plain readinto"
IDENTITY = Identity(bytes(32))
GUARD = "find_ms=5000&fetch_ms=20000"  # on, but a busy machine shall not trip it


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), default=None)
def main(runs: int, directory: Path | None) -> None:
    """Time every store that can be opened here."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch, ExitStack() as stack:
        root = Path(scratch)
        redis_port = stack.enter_context(private_redis()) if has_redis() else None
        urls = dict(stack.enter_context(places(root, redis_port)))
        for name, shape in SHAPES.items():
            state = synthetic(*shape)
            things = dict(reads(root, redis_port, urls, state, stack))
            report(f"{name}, {state.nbytes / 1e6:.1f} MB, read", alternate(runs, things))
        for name, shape in SHAPES.items():
            state = synthetic(*shape)
            things = dict(writes(root, redis_port, urls, state, stack))
            report(
                f"{name}, {state.nbytes / 1e6:.1f} MB, put", alternate(max(5, runs // 4), things)
            )


@contextmanager
def places(root: Path, redis_port: int | None) -> Iterator[dict[str, str]]:
    """The stores' URLs, without a codec."""
    urls = {"memory": "memory://bench?", "file": f"{(root / 'file').as_uri()}?"}
    with ExitStack() as stack:
        if redis_port is None:
            click.echo(MISSING.format("redis-server"))
        else:
            urls["Redis"] = f"redis://127.0.0.1:{redis_port}/1?{GUARD}&"
        if postgres_binaries() is None:
            click.echo(MISSING.format("PostgreSQL"))
        else:
            url = create_database(stack.enter_context(private_postgres()), "fetch")
            urls["PostgreSQL"] = f"{url}?blobs={(root / 'fleet').as_uri()}&timeout_s=60&{GUARD}&"
        yield urls


def reads(
    root: Path, redis_port: int | None, urls: dict[str, str], state: State, stack: ExitStack
) -> Iterator[tuple[str, Callable[[], float]]]:
    """The plain reads, and a find in each store."""
    image = image_of(state)
    plain = root / "plain"
    plain.write_bytes(image)
    yield READ, lambda: timed(plain.read_bytes)
    yield READ_INTO, partial(timed, partial(read_into, plain, bytearray(len(image))))
    if redis_port is not None:
        client = stack.enter_context(Redis(port=redis_port))
        client.set("plain", image)
        yield GET, lambda: timed(lambda: client.get("plain"))
    for place, url in urls.items():
        for codec in ("raw", "lossless", *(["auto"] if place == "Redis" else [])):
            store = stack.enter_context(open_store(f"{url}codec={codec}"))
            key = a_key(hash((place, codec, state.nbytes)) & 0xFFFFFF)
            assert put(store, key, state) is PutOutcome.PUBLISHED
            if codec == "auto":
                settle(store, key, state)
            yield f"{place}, {codec}", partial(find, store, key)


def writes(
    root: Path, redis_port: int | None, urls: dict[str, str], state: State, stack: ExitStack
) -> Iterator[tuple[str, Callable[[], float]]]:
    """The bare writes, and a put in each store; what was put is removed, untimed."""
    image = image_of(state)
    yield WRITE, lambda: timed(lambda: bare_write(root / "bare", image))
    if redis_port is not None:
        client = stack.enter_context(Redis(port=redis_port))
        yield SET, lambda: timed(lambda: client.set("plain", image))
    numbers = count(10**7)
    for place, url in urls.items():
        for codec in ("raw", "lossless"):
            store = stack.enter_context(open_store(f"{url}codec={codec}"))
            yield f"{place}, {codec}", partial(put_and_remove, store, numbers, state)


def image_of(state: State) -> bytes:
    """The state's bytes and nothing else."""
    return b"".join(tensor.data for tensor in state.parts)


def read_into(path: Path, buffer: bytearray) -> None:
    """As a plain read, into memory that is there."""
    with path.open("rb", buffering=0) as file:
        assert file.readinto(buffer) == len(buffer)


def find(store: StateStore, key: StateKey) -> float:
    """Seconds until the state is there; noting the hit comes after the answer."""
    keys = [*(a_key(number) for number in range(10**8, 10**8 + 3)), key]

    def look() -> None:
        assert store.find(IDENTITY, keys, touch=False) is not None

    return timed(look)


def settle(store: StateStore, key: StateKey, state: State) -> None:
    """Put the state again, once it is known how fast the place is."""
    for _ in range(5):
        find(store, key)
    assert store.delete(key)
    assert put(store, key, state) is PutOutcome.PUBLISHED


def put(store: StateStore, key: StateKey, state: State) -> PutOutcome:
    """Store `state` under `key`."""
    return store.put(
        IDENTITY, key, state, token_digest=os.urandom(32), role=Role.PROMPT, durable=True
    )


def put_and_remove(store: StateStore, numbers: Iterator[int], state: State) -> float:
    """Seconds of a put."""
    key = a_key(next(numbers))
    took = timed(lambda: put(store, key, state))
    assert store.delete(key)
    return took


def report(title: str, timings: dict[str, Timing]) -> None:
    """Print one table: beside each store the ratio to its peer and what it adds."""
    columns = ("", "median ms", "p90", "p99", "per s", "ratio", "added ms", "peer", "of raw")
    table = Table(*columns, title=title)
    for name, timing in timings.items():
        peer = _peer(name, timings)
        ratio = added = ""
        if peer:
            ratio = f"{timing.median_s / timings[peer].median_s:.2f}"
            added = f"{(timing.median_s - timings[peer].median_s) * 1e3:+.2f}"
        place, _, codec = name.partition(", ")
        of_raw = ""
        if codec not in ("", "raw"):
            of_raw = f"{timing.median_s / timings[f'{place}, raw'].median_s:.2f}"
        per_s = f"{1 / timing.median_s:,.0f}"
        table.add_row(name, *timing.milliseconds(), per_s, ratio, added, peer, of_raw)
    Console(width=110).print(table)


def _peer(name: str, timings: dict[str, Timing]) -> str:
    peers = (GET, SET) if name.startswith("Redis") else (READ, WRITE)
    found = [peer for peer in peers if peer in timings and peer != name]
    return found[0] if "," in name and found else ""


if __name__ == "__main__":
    main()
