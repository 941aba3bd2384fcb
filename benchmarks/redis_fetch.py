"""Find and fetch of a state in Redis, beside one plain redis-py GET of the same bytes.

A private server on this machine, the library's defaults for the plain GET. The find looks up as
many keys as a prompt of a million tokens has chunks, of which the last is stored; that alone, and a
publish beside one plain SET, are timed too.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import click
from redis import Redis
from rich.console import Console
from rich.table import Table

from benchmarks.bench_file_backend import CREATED_AT, STATE_BYTES, a_key, an_entry
from benchmarks.stats import Timing, alternate, timed
from statestore.backends.redis.address import Address
from statestore.backends.redis.backend import RedisBackend, open_redis_backend
from statestore.entry import Entry
from statestore.keys import StateKey

PROMPTS = {"1 k tokens": 4, "32 k tokens": 128, "1 M tokens": 4096}  # keys, chunks of 256
PEERS = {
    "find + fetch": "plain GET",
    "find + fetch, 4,096 keys": "plain GET",
    "fetch": "plain GET",
    "publish": "plain SET",
}


@click.command()
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--entries", type=click.IntRange(min=1), default=10_000, show_default=True)
def main(runs: int, entries: int) -> None:
    """Time a private server."""
    if shutil.which("redis-server") is None:
        click.echo("not run: no redis-server (make services installs it)")
        return
    with private_server() as port:
        backend = open_redis_backend(Address.of("redis", f"127.0.0.1:{port}", "", {}))
        for number in range(entries):
            backend.publish(an_entry(number, 1), [b"!"])
        report(f"{entries:,} entries", alternate(runs, lookups(backend)))
        for name, size in STATE_BYTES.items():
            with Redis(port=port) as plain:
                report(f"{name}, read", alternate(runs, reads(backend, plain, size)))
                report(f"{name}, write", alternate(runs, writes(backend, plain, size)))
        backend.close()


@contextmanager
def private_server() -> Iterator[int]:
    """A server that keeps nothing on disk; its port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        command = ["redis-server", "--port", str(port), "--dir", directory, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                time.sleep(0.02)
            yield port
        finally:
            process.kill()
            process.wait()


def lookups(backend: RedisBackend) -> dict[str, Callable[[], float]]:
    """Lookups alone: nothing stored, and the shallowest key stored."""

    def look(keys: list[StateKey]) -> Callable[[], float]:
        return lambda: timed(lambda: backend.longest(keys, CREATED_AT))

    things: dict[str, Callable[[], float]] = {}
    for name, size in PROMPTS.items():
        missing = [a_key(number) for number in range(10**7, 10**7 + size)]
        things[f"find, {name}, miss"] = look(missing)
        things[f"find, {name}, hit"] = look([*missing[1:], a_key(0)])
    things["touch"] = lambda: timed(lambda: backend.touch(an_entry(0, 1), time.time(), 0.0))
    things["usage"] = lambda: timed(backend.usage)
    return things


def reads(backend: RedisBackend, plain: Redis, size: int) -> dict[str, Callable[[], float]]:
    """A state of one size, in the store and as one value."""
    content = os.urandom(size)
    stored = an_entry(size, size)
    backend.publish(stored, [content])
    plain.set("plain", content)
    few = [*(a_key(number) for number in range(10**7, 10**7 + 3)), stored.key]
    many = [*(a_key(number) for number in range(10**7, 10**7 + 4095)), stored.key]

    def find_and_fetch(keys: list[StateKey]) -> None:
        found = backend.longest(keys, CREATED_AT)
        assert found is not None
        fetch(found)

    def fetch(entry: Entry) -> None:
        blob = backend.read(entry)
        assert blob is not None
        assert len(blob) == size

    return {
        "find + fetch": lambda: timed(lambda: find_and_fetch(few)),
        "find + fetch, 4,096 keys": lambda: timed(lambda: find_and_fetch(many)),
        "fetch": lambda: timed(lambda: fetch(stored)),
        "plain GET": lambda: timed(lambda: plain.get("plain")),
    }


def writes(backend: RedisBackend, plain: Redis, size: int) -> dict[str, Callable[[], float]]:
    """A new state of one size, and one new value."""
    content = os.urandom(size)
    numbers = count(size + 1)

    def publish() -> float:
        entry = an_entry(next(numbers), size)
        took = timed(lambda: backend.publish(entry, [content]))
        backend.delete(entry.key, "deleted")
        return took

    def plain_set() -> float:
        took = timed(lambda: plain.set("plain", content))
        plain.unlink("plain")
        return took

    return {"publish": publish, "plain SET": plain_set}


def report(title: str, timings: dict[str, Timing]) -> None:
    """Print one table; with peers, the ratio to them."""
    table = Table("call", "median ms", "p90", "p99", "ratio to plain", title=title)
    for name, timing in timings.items():
        peer = timings.get(PEERS.get(name, ""))
        ratio = f"{timing.median_s / peer.median_s:.2f}" if peer else ""
        table.add_row(name, *timing.milliseconds(), ratio)
    Console().print(table)


if __name__ == "__main__":
    main()
