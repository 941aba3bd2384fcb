"""The file backend over a full catalog, beside the bare file system doing the same writes and
reads.

The catalog is filled with rows alone (no blobs), then every call is timed as a caller meets it.
Peers: ``write, fsync, rename, fsync of the directory`` for a publish, one ``read`` for a read.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks.stats import Timing, alternate, timed
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.file import CATALOG, open_file_backend
from statestore.backends.sql.rows import to_row
from statestore.entry import Entry, EntryFilter, Role
from statestore.keys import StateKey

STATE_BYTES = {"2.4 MB (0.1B)": 2_400_000, "34.6 MB (7.2B)": 34_600_000}
CREATED_AT = 1_700_000_000.0


@click.command()
@click.option("--entries", type=click.IntRange(min=1), default=100_000, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), default=None)
def main(entries: int, runs: int, directory: Path | None) -> None:
    """Time the calls of a request, an operator and an opening process."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        root = Path(scratch) / "store"
        backend = open_file_backend(root)
        fill(root / CATALOG, entries)
        report(f"Catalog of {entries:,} entries", alternate(runs, catalog_calls(backend, root)))
        for name, size in STATE_BYTES.items():
            report(name, alternate(runs, blob_calls(backend, Path(scratch), size)))
        backend.close()


def a_key(number: int) -> StateKey:
    """A key that only this number has."""
    digest = hashlib.sha256(b"%d" % number).digest()
    return StateKey(digest, number + 1, int.from_bytes(digest[8:16], "big", signed=True))


def an_entry(number: int, blob_bytes: int) -> Entry:
    """An entry of plausible width."""
    key = a_key(number)
    return Entry(
        key=key,
        namespace="default",
        fingerprint=bytes(32),
        token_digest=key.digest[::-1],
        schema_id="rwkv7/12x768x12",
        role=Role.PROMPT,
        blob=f"{key}.{os.urandom(8).hex()}",
        blob_bytes=blob_bytes,
        state_bytes=blob_bytes,
        has_output=True,
        cost_s=1.0,
        created_at=CREATED_AT,
        used_at=CREATED_AT + number,
    )


def fill(catalog: Path, entries: int) -> None:
    """Insert rows, past the backend: publishing 100,000 blobs would take an hour."""
    rows = [to_row(an_entry(number, 1)) for number in range(entries)]
    names = ", ".join(rows[0])
    values = ", ".join(f":{name}" for name in rows[0])
    connection = sqlite3.connect(catalog)
    with connection:
        connection.executemany(f"INSERT INTO entries ({names}) VALUES ({values})", rows)
    connection.close()


def catalog_calls(backend: SqlBackend, root: Path) -> dict[str, Callable[[], float]]:
    """Calls that touch no blob."""
    unknown = [a_key(number) for number in range(10**7, 10**7 + 30_000)]
    stored = [a_key(number) for number in range(800)]
    everything = EntryFilter()
    return {
        "open and close": lambda: timed(lambda: open_file_backend(root).close()),
        "longest, 800 keys, none stored": lambda: timed(
            lambda: backend.longest(unknown[:800], CREATED_AT)
        ),
        "longest, 800 keys, all stored": lambda: timed(lambda: backend.longest(stored, CREATED_AT)),
        "longest, 30,000 keys": lambda: timed(lambda: backend.longest(unknown, CREATED_AT)),
        "touch": lambda: timed(lambda: backend.touch(an_entry(0, 1), time.time(), 0.0)),
        "usage": lambda: timed(backend.usage),
        "first page of a listing": lambda: timed(lambda: next(backend.entries(everything))),
    }


def blob_calls(backend: SqlBackend, scratch: Path, size: int) -> dict[str, Callable[[], float]]:
    """Publish, read and delete of one size, and the bare file system."""
    content = os.urandom(size)
    numbers = count(2 * 10**7)
    last: list[Entry] = []

    def publish() -> float:
        last[:] = [an_entry(next(numbers), size)]
        return timed(lambda: backend.publish(last[0], [content]))

    return {
        "publish": publish,
        "bare write": lambda: timed(lambda: bare_write(scratch / "bare", content)),
        "read": lambda: timed(lambda: backend.read(last[0])),
        "bare read": lambda: timed((scratch / "bare").read_bytes),
        "delete": lambda: timed(lambda: backend.delete(last[0].key, "deleted")),
    }


def bare_write(path: Path, content: bytes) -> None:
    """What durability costs at the least."""
    part = path.with_suffix(".part")
    with part.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    part.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def report(title: str, timings: dict[str, Timing]) -> None:
    """Print one table; with peers, the ratio to them."""
    table = Table("call", "median ms", "p90", "p99", "ratio to bare", title=title)
    for name, timing, ratio in _with_ratios(timings):
        table.add_row(name, *timing.milliseconds(), ratio)
    Console().print(table)


def _with_ratios(timings: dict[str, Timing]) -> Iterator[tuple[str, Timing, str]]:
    peers = {"publish": "bare write", "read": "bare read"}
    for name, timing in timings.items():
        peer = timings.get(peers.get(name, ""))
        yield name, timing, f"{timing.median_s / peer.median_s:.2f}" if peer else ""


if __name__ == "__main__":
    main()
