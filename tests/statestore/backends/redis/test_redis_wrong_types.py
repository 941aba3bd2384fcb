"""A key of the store's own that holds something else: a hand's slip costs figures, no requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from statestore.backends.sightings import sightings_of
from statestore.keys import marks
from tests.places.backend_places import CREATED_AT, a_key, an_entry, digest, publish
from tests.places.redis_places import RedisPlace, open_url
from tests.places.redis_servers import RedisServer, running

MARKS = marks([digest(f"seen {number}") for number in range(40)])

SLIPS: list[Callable[[Any, str], Any]] = [
    lambda client, name: (
        client.set(name, "no hash") if "totals" in name else client.hset(name, "a", "b")
    ),
    lambda client, name: client.rpush(name, "a list"),
]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def backend(server: RedisServer) -> Iterator[Any]:
    backend = open_url(f"{server.url}?timeout_s=30")
    yield backend
    backend.close()


def slip(server: RedisServer, name: str, make: Callable[[Any, str], Any]) -> None:
    (key,) = RedisPlace(server.url, [server], "statestore").keys(f"{{*}}:{name}")
    with server.client() as client:
        client.delete(key)
        make(client, key)


@pytest.mark.parametrize("make", SLIPS)
def test_sightings(server: RedisServer, backend: Any, make: Callable[[Any, str], Any]) -> None:
    index = sightings_of(backend)
    assert index is not None
    for first in ("seen", "note"):
        index.note(MARKS)
        assert index.seen(MARKS) == len(MARKS)
        slip(server, "sightings", make)
        if first == "seen":
            assert index.seen(MARKS) == 0
    index.note(MARKS)
    assert index.seen(MARKS) == len(MARKS)


@pytest.mark.parametrize("make", SLIPS)
@pytest.mark.parametrize(
    "call",
    [
        lambda it: it.usage(),
        lambda it: publish(it, an_entry(9)),
        lambda it: it.touch(an_entry(1), CREATED_AT, 5.0),
        lambda it: it.delete(a_key(1), "deleted"),
        lambda it: it.evict(10**9, CREATED_AT),
        lambda it: it.sweep(CREATED_AT, 3600.0),
    ],
    ids=["usage", "put", "touch", "delete", "evict", "sweep"],
)
def test_totals(
    server: RedisServer,
    backend: Any,
    make: Callable[[Any, str], Any],
    call: Callable[[Any], Any],
) -> None:
    for number in range(4):
        publish(backend, an_entry(number, namespace=f"tenant {number % 2}"))
    slip(server, "totals", make)
    call(backend)
    assert backend.longest([a_key(0)], CREATED_AT) is not None
    held = len(RedisPlace(server.url, [server], "statestore").rows())
    assert backend.usage().entries == held
    assert backend.usage().blob_bytes == 1000 * held
    assert backend.usage("tenant 0").entries == 2
    assert backend.evict(1000, CREATED_AT).entries == held - 1
    assert backend.usage().entries == 1
