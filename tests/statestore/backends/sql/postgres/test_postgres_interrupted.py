"""Lookups in PostgreSQL that are interrupted anywhere: no answer comes to another's question."""

from __future__ import annotations

from typing import Any

import pytest

from statestore.keys import StateKey
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish
from tests.statestore.backends.sql.test_interrupted import Interrupter

INTERRUPTS = 150


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the driver's:
# what was being opened is closed by the collector
def test_interrupted_lookups_answer_nobody_else(backend: Any) -> None:
    entries = [an_entry(number) for number in range(8)]
    for entry in entries:
        publish(backend, entry)
    interrupter = Interrupter(0.05)  # a new connection takes some of that
    met: list[tuple[StateKey, StateKey]] = []
    with interrupter.running():
        while interrupter.count < INTERRUPTS:
            with interrupter.let():
                for entry in entries * 10:
                    found = backend.longest([a_key(100), entry.key], CREATED_AT)
                    met.append((entry.key, found.key))
    assert len(met) > INTERRUPTS / 10
    assert all(asked == found for asked, found in met)
    for entry in entries:
        assert backend.longest([a_key(100), entry.key], CREATED_AT) == entry
        assert bytes(backend.read(entry)) == a_blob(entry.key)
