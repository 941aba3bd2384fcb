"""Whether a place has room to spare, asked through all that stands before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from statestore import open_store
from statestore.backends.headroom import has_headroom
from statestore.backends.memory.backend import MemoryBackend
from statestore.entry import Entry, Role
from statestore.keys import StateKey
from statestore.simulate.real import BLOB
from statestore.simulate.replay import an_entry
from tests.places.backend_places import digest


def fill(url: str, states: int) -> tuple[bool, bool]:
    """Whether there is room for a namespace that puts so many states, and for another."""
    with open_store(url) as store:
        for number in range(states):
            entry = an_entry(StateKey(digest(str(number)), 100), Role.PROMPT, 0, store.now())
            store.backend.publish(_sized(entry), [BLOB], durable=True)
        return has_headroom(store.backend, "default"), has_headroom(store.backend, "other")


def _sized(entry: Entry) -> Entry:
    return replace(entry, blob=f"{entry.key}.1", blob_bytes=len(BLOB))


TEN = 10 * len(BLOB)


@pytest.mark.parametrize(
    ("options", "states", "expected"),
    [
        (f"?budget={TEN}", 8, (True, True)),
        (f"?budget={TEN}", 9, (False, False)),
        (f"?budget={TEN}", 30, (False, False)),
        (f"?budget.default={TEN}&budget=1MiB", 9, (False, True)),
        (f"?budget.other={TEN}", 1, (False, True)),  # the default one may grow for ever
        ("?ttl=1d", 1, (False, False)),
        ("", 1, (False, False)),
    ],
)
def test_room_is_of_budgets(
    tmp_path: Path, options: str, states: int, expected: tuple[bool, bool]
) -> None:
    place = f"{(tmp_path / 'states').as_uri()}{options}"
    assert fill(place, states) == expected


@pytest.mark.parametrize(("states", "expected"), [(3, True), (9, False)])
def test_of_tiers_the_last_one_counts(tmp_path: Path, states: int, expected: bool) -> None:
    place = f"memory: {(tmp_path / 'states').as_uri()}?budget={TEN}"
    assert fill(place, states) == (expected, expected)


def test_a_place_that_knows_of_no_budget_has_none() -> None:
    assert not has_headroom(MemoryBackend(), "default")
