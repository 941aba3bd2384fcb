"""The fleet's store on a real PostgreSQL: both contracts, the model, plans, URLs and secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.statestore.backend_places import Place
from tests.statestore.postgres_servers import PostgresPlace
from tests.statestore.test_backend_contract import BackendContract
from tests.statestore.test_backend_model import BackendModel
from tests.statestore.test_listing_contract import ListingContract


@pytest.fixture
def place(tmp_path: Path) -> Iterator[PostgresPlace]:
    place = PostgresPlace(tmp_path / "a store with % and ?")
    yield place
    place.drop()


class TestPostgresBackend(BackendContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place


class TestPostgresListing(ListingContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place
