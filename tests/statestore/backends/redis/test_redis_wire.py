"""The quick way to read from Redis: as right as the usual one, and in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from statestore.backends.base import NotAtHandError
from statestore.backends.redis.parts import PART_BYTES
from statestore.backends.redis.wire import KEPT
from statestore.backends.wrappers.budget import Budget
from statestore.backends.wrappers.budgeted import Budgeted
from statestore.backends.wrappers.deadline import Deadlines
from statestore.backends.wrappers.guarded import Guarded
from statestore.errors import UnavailableError
from statestore.eviction import DEFAULT, make_policy
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, digest, publish
from tests.places.redis_places import RedisPlace, open_url
from tests.places.redis_servers import RedisServer, running

NOW = CREATED_AT


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def backend(server: RedisServer) -> Iterator[Any]:
    backend = open_url(f"{server.url}?timeout_s=30")
    yield backend
    backend.close()


@pytest.mark.parametrize(
    "size", [0, 1, 31, 33, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 6 * PART_BYTES + 7]
)
def test_blobs_of_any_number_of_parts(backend: Any, size: int) -> None:
    entry = an_entry(0, blob_bytes=size)
    publish(backend, entry)
    assert backend.longest([a_key(1), a_key(0)], NOW) == entry
    for _ in range(2):
        assert backend.read(entry) == a_blob(entry.key, size)
    assert backend.read_within(entry, 60.0) == a_blob(entry.key, size)
    assert backend.longest_within([a_key(1), a_key(0)], NOW, 60.0) == entry


def test_what_is_not_there(backend: Any) -> None:
    entry = an_entry(0, blob_bytes=3 * PART_BYTES)
    assert backend.longest([], NOW) is None
    assert backend.longest([entry.key], NOW) is None
    assert backend.read(entry) is None
    publish(backend, an_entry(1))
    assert backend.longest_within([entry.key, a_key(1)], NOW, 60.0).key == a_key(1)


def test_connections_that_were_cut_are_made_anew(server: RedisServer, backend: Any) -> None:
    entry = an_entry(0, blob_bytes=2 * PART_BYTES)
    publish(backend, entry)
    with ThreadPoolExecutor(KEPT + 4) as threads:  # more than are kept
        found = list(threads.map(lambda _: backend.longest([entry.key], NOW), range(100)))
    assert found == [entry] * 100
    for ask in (lambda: backend.longest([entry.key], NOW), lambda: backend.read(entry)):
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        assert ask() is not None
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(NotAtHandError):
        backend.longest_within([entry.key], NOW, 60.0)
    assert backend.longest([entry.key], NOW) == entry
    assert backend.longest_within([entry.key], NOW, 60.0) == entry


def test_an_error_in_a_reply_has_its_name(server: RedisServer, backend: Any) -> None:
    entry = an_entry(0, blob_bytes=3 * PART_BYTES)
    publish(backend, entry)
    place = RedisPlace(server.url, [server], "statestore")
    (part,) = place.keys(f"{{*}}:part:{entry.blob}:1")
    with server.client() as client:
        client.delete(part)
        client.rpush(part, "no string")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="WRONGTYPE"):
            backend.read(entry)
    with pytest.raises(NotAtHandError):  # it hung up
        backend.read_within(entry, 60.0)
    assert backend.longest([entry.key], NOW) == entry


def test_a_server_that_stops_costs_the_limit(server: RedisServer, backend: Any) -> None:
    """Not the 30 s that the driver would wait."""
    entry = an_entry(0, blob_bytes=8 * PART_BYTES)
    publish(backend, entry)
    assert backend.longest([entry.key], NOW) == entry
    server.pause()
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="Timeout"):
        backend.longest_within([entry.key], NOW, 0.05)
    server.go_on()
    assert backend.longest([entry.key], NOW) == entry
    server.pause()
    with pytest.raises(UnavailableError, match="Timeout"):
        backend.read_within(entry, 0.05)
    assert time.monotonic() - began < 20
    server.go_on()
    assert backend.read(entry) == a_blob(entry.key, entry.blob_bytes)


@pytest.mark.parametrize("within", [None, Budget(1 << 30)])
def test_a_guard_asks_on_the_callers_thread(backend: Any, within: Budget | None) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    backend.longest([entry.key], NOW)
    inner = backend if within is None else Budgeted(backend, within, make_policy(DEFAULT))
    guard = Guarded(inner, Deadlines(20.0, 20.0))
    assert guard.longest([entry.key], NOW) == entry
    assert guard.read(entry) == a_blob(entry.key)
    assert guard._threads.running == 0
    guard.touch(entry, NOW, 1.0)
    assert guard._threads.running == 1
    guard.close()


def test_sightings_in_time(server: RedisServer, backend: Any) -> None:
    marks = [digest(f"mark {place}")[:12] for place in range(40)]
    backend.sightings.note(marks[:25])
    assert backend.sightings.seen(marks) == 25  # opens the wire
    assert backend.sightings.seen_within(marks, 60.0) == 25
    assert backend.sightings.seen_within([], 60.0) == 0
    guard = Guarded(backend, Deadlines(20.0, 20.0))
    assert guard.sightings is not None
    assert guard.sightings.seen(marks) == 25
    assert guard._threads.running == 0
    guard.close()
    other = open_url(f"{server.url}?timeout_s=30")
    with pytest.raises(NotAtHandError):
        other.sightings.seen_within(marks, 60.0)
    other.close()
