"""A store on the shared PostgreSQL, for each test a new one; and a server that tests may stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.places.postgres_servers import PostgresPlace, PostgresServer


@pytest.fixture
def place(tmp_path: Path) -> Iterator[PostgresPlace]:
    place = PostgresPlace(tmp_path, timeout_s="20")
    yield place
    place.drop()


@pytest.fixture
def backend(place: PostgresPlace) -> Iterator[Any]:
    with closing(place.open()) as backend:
        yield backend


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgresServer]:
    """A server that tests may stop."""
    server = PostgresServer()
    server.start()
    yield server
    server.remove()
