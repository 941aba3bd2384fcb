"""The contracts, with a guard in between that has all the time it wants."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from statestore.backends.base import Backend
from statestore.backends.wrappers.guarded import Guarded
from tests.places.backend_places import MemoryPlace, Place, open_backend
from tests.statestore.contracts.test_backend_contract import BackendContract
from tests.statestore.contracts.test_eviction_contract import EvictionContract
from tests.statestore.contracts.test_lease_contract import LeaseContract
from tests.statestore.contracts.test_lookups_contract import LookupsContract
from tests.statestore.contracts.test_sightings_contract import SightingsContract

names = (f"guarded-{number}" for number in itertools.count())


class GuardedPlace(MemoryPlace):
    """A `Place` in memory, opened with a guard."""

    def open(self) -> Backend:
        guarded = open_backend(f"{self.url}?find_ms=60000&fetch_ms=60000")
        assert isinstance(guarded, Guarded)
        return guarded


class Behind:
    @pytest.fixture
    def place(self) -> Iterator[Place]:
        place = GuardedPlace(next(names))
        yield place
        place.held.close()


class TestGuardedBackend(Behind, BackendContract):
    # Nobody else can write to this process's memory.
    test_a_blob_that_grew_is_not_read_beyond_one_byte = None


class TestGuardedEviction(Behind, EvictionContract):
    pass


class TestGuardedLeases(Behind, LeaseContract):
    pass


class TestGuardedLookups(Behind, LookupsContract):
    pass


class TestGuardedSightings(Behind, SightingsContract):
    pass
