"""What backend tests share: entries made from a number, and places with raw access.

Raw access never goes through the code under test: it sees the files and the rows as an operator's
tools would.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from statestore.backends.base import Backend
from statestore.backends.tiers.write_behind import Bounds
from statestore.backends.wrappers.budgeted import Budgeted
from statestore.backends.wrappers.guarded import Guarded
from statestore.entry import Entry, Role
from statestore.keys import StateKey
from statestore.settings import open_store

CREATED_AT = 1_700_000_000.0


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def a_key(number: int) -> StateKey:
    return StateKey(digest(f"key {number}"), number + 1)


def a_blob(entry_key: StateKey, size: int = 1000) -> bytes:
    """Bytes that only this key has."""
    return hashlib.shake_128(str(entry_key).encode()).digest(size)


def an_entry(number: int, **given: Any) -> Entry:
    """The entry of `a_key(number)`; its blob is `a_blob(key, blob_bytes)`, its write id fresh."""
    key = given.pop("key", a_key(number))
    size = given.pop("blob_bytes", 1000)
    known: dict[str, Any] = {
        "namespace": "default",
        "fingerprint": digest("model"),
        "token_digest": digest(f"tokens {number}"),
        "schema_id": "rwkv7",
        "role": Role.SEGMENT,
        "blob": f"{key}.{os.urandom(8).hex()}",
        "blob_bytes": size,
        "state_bytes": 2 * size,
        "has_output": False,
        "cost_s": 1.5,
        "created_at": CREATED_AT,
        "used_at": CREATED_AT + number,
    }
    return Entry(key=key, **{**known, **given})


def publish(backend: Backend, entry: Entry) -> bool:
    return backend.publish(entry, [a_blob(entry.key, entry.blob_bytes)])


def publish_all(backend: Backend, entries: Iterable[Entry]) -> None:
    """Several at a time: nearly all of a put's time goes by waiting for the disk."""
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(partial(publish, backend), entries))


def open_backend(url: str) -> Any:
    """The backend of the store at a public URL, but for the policy that writes scores of its own:
    the contracts give scores themselves.
    """
    backend: Any = open_store(url).backend
    if isinstance(backend, Guarded) and isinstance(backend.inner, Budgeted):
        backend.inner = backend.inner.inner
    return backend.inner if isinstance(backend, Budgeted) else backend


class Place(Protocol):
    """Somewhere to open backends, with raw access to what lies there."""

    def open(self) -> Backend: ...

    def blob_names(self) -> set[str]: ...

    def read_blob(self, name: str) -> bytes: ...

    def write_blob(self, name: str, content: bytes, age_s: float) -> None: ...

    def remove_blob(self, name: str) -> None: ...

    def rows(self) -> list[dict[str, Any]]: ...


class FilePlace:
    """A `Place` that is a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> Backend:
        return open_backend(self.root.as_uri())

    def path(self, name: str) -> Path:
        return self.root / "blobs" / name[:2] / name

    def blob_names(self) -> set[str]:
        return {path.name for path in self.root.glob("blobs/*/*")}

    def read_blob(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def write_blob(self, name: str, content: bytes, age_s: float) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_bytes(content)
        modified_at = time.time() - age_s
        os.utime(self.path(name), (modified_at, modified_at))

    def remove_blob(self, name: str) -> None:
        self.path(name).unlink()

    def rows(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.root / "catalog.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute("SELECT * FROM entries")]


class MemoryPlace:
    """A `Place` that is a shared store in memory; raw access goes to its dict."""

    def __init__(self, name: str) -> None:
        self.url = f"memory://{name}"
        self.held = open_backend(self.url)  # what is shared lives while somebody has it open

    def open(self) -> Backend:
        return open_backend(self.url)

    def kept(self) -> dict[str, Any]:
        return {kept.entry.blob: kept for kept in self.held.room().shelf._kept.values()}

    def blob_names(self) -> set[str]:
        return {name for name, kept in self.kept().items() if kept.blob is not None}

    def read_blob(self, name: str) -> bytes:
        return bytes(self.kept()[name].blob)

    def write_blob(self, name: str, content: bytes, age_s: float) -> None:
        self.kept()[name].blob = memoryview(content)

    def remove_blob(self, name: str) -> None:
        self.kept()[name].blob = None

    def rows(self) -> list[dict[str, Any]]:
        names = [field.name for field in fields(Entry)]
        entries = [kept.entry for kept in self.kept().values()]
        return [
            {**{name: getattr(entry, name) for name in names}, "digest": entry.key.digest}
            for entry in entries
        ]


class TieredPlace:
    """Memory, shared in the process, ahead of a home; raw access goes to the home, once what
    waits is written.
    """

    def __init__(self, name: str, home: Place, home_url: str) -> None:
        self.url = f"memory://{name} {home_url}"
        self.home = home
        self.opened: list[Any] = []

    def open(self) -> Backend:
        tiers = open_backend(self.url)
        tiers._queue._bounds = Bounds(patience_s=60.0)  # a loaded machine is no slow tier
        self.opened.append(tiers)
        return tiers

    def settled(self) -> Place:
        for backend in self.opened:
            assert backend.flush(60.0)
        return self.home

    def blob_names(self) -> set[str]:
        return self.settled().blob_names()

    def read_blob(self, name: str) -> bytes:
        return self.settled().read_blob(name)

    def write_blob(self, name: str, content: bytes, age_s: float) -> None:
        self.settled().write_blob(name, content, age_s)

    def remove_blob(self, name: str) -> None:
        self.settled().remove_blob(name)

    def rows(self) -> list[dict[str, Any]]:
        return self.settled().rows()


class PlaceContract:
    """The fixtures of a contract: a subclass gives `place`."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        raise NotImplementedError

    def same(self, found: Entry | None, entry: Entry) -> bool:
        """Whether a lookup gave `entry`."""
        return found == entry

    @pytest.fixture
    def backend(self, place: Place) -> Iterator[Backend]:
        backend = place.open()
        yield backend
        backend.close()
