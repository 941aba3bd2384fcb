"""What goes wrong in each request is told once, and then now and then."""

from __future__ import annotations

import logging

import pytest

from statestore import StateStore
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.tiers.backend import Tier, Tiered
from statestore.backends.wrappers.faulty import OF_BACKEND, Fail, Fault, Faulty
from statestore.complaints import EVERY_S, Complaints
from statestore.errors import UnavailableError
from tests.places.backend_places import a_key
from tests.places.states import OURS, put


def test_the_first_is_told_and_then_one_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    now = 0.0
    complaints = Complaints(logging.getLogger("place"), monotonic=lambda: now)
    for _ in range(3):
        complaints.add("find", "%s failed: %d%%", "find", 7)
    complaints.add("put", "put failed")
    now = EVERY_S
    complaints.add("find", "find failed")
    complaints.add("put", "put failed")
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        "find failed: 7%",
        "put failed",
        "find failed (and 2 times more since this was last said)",
        "put failed",
    ]
    assert sum(record.levelname == "DEBUG" for record in caplog.records) == 2


@pytest.mark.parametrize("tiers", [1, 2])
def test_a_place_that_is_down_floods_no_log(tiers: int, caplog: pytest.LogCaptureFixture) -> None:
    down = Faulty(MemoryBackend(), Fault(OF_BACKEND, Fail(UnavailableError("down"))))
    near = [Tier("near", MemoryBackend())] * (tiers - 1)
    backend = Tiered([*near, Tier("home", down)]) if near else down
    with StateStore(backend) as store:
        for number in range(50):
            assert store.find(OURS, [a_key(number)]) is None
            put(store, number)
        assert store.flush(60.0)
    told = [record.getMessage() for record in caplog.records]
    assert [line.partition(" ")[0] for line in told] == ["find", "put"], told
    assert all("down" in line for line in told)
