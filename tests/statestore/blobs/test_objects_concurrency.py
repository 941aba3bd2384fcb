"""Many processes over PostgreSQL and an object store, and processes that die in the middle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.places.postgres_servers import wait_for_the_dead
from tests.places.s3_servers import ObjectPlace
from tests.places.soundness import check_entries, named
from tests.statestore.workers.postgres_worker import run_worker

WAIT_S = 30.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[ObjectPlace]:
    place = ObjectPlace(tmp_path / "store")
    yield place
    place.drop()


def sweep_until_sound(place: ObjectPlace) -> None:
    """What is left is sound, and sweeps leave nothing but what entries name.

    The server may still be at an upload whose sender is dead: that orphan comes late.
    """
    wait_for_the_dead(place)
    check_entries(place)
    deadline = time.monotonic() + WAIT_S
    with closing(place.open()) as backend:
        backend.sweep(time.time() + 10, grace_s=0)
        while place.blob_names() != named(place):
            assert time.monotonic() < deadline
            backend.sweep(time.time() + 10, grace_s=0)
    check_entries(place)


def test_sigkill_at_any_moment_leaves_at_most_orphans(place: ObjectPlace) -> None:
    run_worker("kill", place.url, 0, 12)
    sweep_until_sound(place)
