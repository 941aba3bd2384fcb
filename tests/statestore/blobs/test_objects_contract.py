"""PostgreSQL with an object store, by its public URL: the contracts of a backend, and the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.places.backend_places import Place
from tests.places.s3_servers import ObjectPlace
from tests.statestore.backends.sql.postgres.test_postgres import PostgresModel
from tests.statestore.contracts.test_backend_contract import BackendContract
from tests.statestore.contracts.test_eviction_contract import EvictionContract
from tests.statestore.contracts.test_listing_contract import ListingContract


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


class ObjectModel(PostgresModel):
    """Without processes that are killed: the driver is of no use to a fork, see `test_chaos`."""

    another_process_is_killed = None

    def __init__(self) -> None:
        super().__init__()
        self.backend.close()
        self.place.drop()
        self.place = ObjectPlace(self.root / "objects")
        self.backend = self.place.open()


TestObjectModel = ObjectModel.TestCase
TestObjectModel.settings = settings(max_examples=3, stateful_step_count=20, deadline=None)
