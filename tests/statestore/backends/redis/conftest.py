"""One server for each module, and a store in it for each test, where a module has no others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import RedisServer, running


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def place(server: RedisServer, request: pytest.FixtureRequest) -> Iterator[RedisPlace]:
    yield RedisPlace(server.url, [server], request.node.originalname or request.node.name)
    server.client().flushall()


@pytest.fixture
def backend(place: RedisPlace) -> Iterator[Any]:
    with closing(place.open()) as backend:
        yield backend
