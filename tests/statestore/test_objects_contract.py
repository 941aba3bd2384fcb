"""PostgreSQL with an object store, through its public URL: every contract of a backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.statestore.backend_places import Place
from tests.statestore.s3_servers import ObjectPlace
from tests.statestore.test_backend_contract import BackendContract
from tests.statestore.test_eviction_contract import EvictionContract
from tests.statestore.test_listing_contract import ListingContract


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = ObjectPlace(tmp_path / "store")
    yield place
    place.drop()


class TestObjectBackend(BackendContract):
    @pytest.fixture
    def place(self, place: Place) -> Place:
        return place


class TestObjectListing(ListingContract):
    @pytest.fixture
    def place(self, place: Place) -> Place:
        return place


class TestObjectEviction(EvictionContract):
    @pytest.fixture
    def place(self, place: Place) -> Place:
        return place
