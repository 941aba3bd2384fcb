"""Processes that use one store at once, for `test_concurrency` and `test_migrations`; see `forked`.

python -m tests.statestore.workers.backend_worker VERB ROOT SEED COUNT
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import alembic.command  # noqa: F401 - loaded here once, not in every child

from statestore.backends.base import Backend
from statestore.backends.leases import Outcome
from statestore.backends.sql.file import open_file_backend
from statestore.entry import Change, EntryFilter, Status
from statestore.errors import UnavailableError
from statestore.keys import StateKey
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish
from tests.statestore.workers.forked import (
    Verb,
    at_once,
    end_with,
    killed_in_pairs,
    run_module,
    side_by_side,
)

KEYS = 30  # that `step` plays with
MARKS = 16  # further ones, published once and left alone
PATIENCE_S = 60.0

#: Processes that one test kills: a dozen, or as many as somebody has the time for.
KILLS = int(os.environ.get("TEST_KILLS", "12"))


def run_worker(verb: str, root: Path, seed: int, count: int) -> subprocess.CompletedProcess[str]:
    return run_module("tests.statestore.workers.backend_worker", verb, root, seed, count)


@contextmanager
def unless_busy() -> Iterator[None]:
    """For calls that do not wait long for a lock."""
    try:
        yield
    except UnavailableError as error:
        if "was busy" not in str(error):
            raise


def step(backend: Backend, dice: random.Random) -> None:
    """One random call, and what must hold of its result whatever others do meanwhile."""
    number = dice.randrange(KEYS)
    key = a_key(number)
    match dice.randrange(12):
        case 0 | 1 | 2:
            publish(backend, an_entry(number, blob_bytes=dice.randrange(40_000)))
        case 3:
            backend.delete(key, "deleted")
        case 4:
            with unless_busy():
                backend.touch(an_entry(number), CREATED_AT + dice.random(), dice.random())
        case 5:
            backend.update(key, Change(pinned=dice.random() < 0.5, labels={"by": str(os.getpid())}))
        case 6:
            with unless_busy():
                backend.update(key, Change(status=Status.QUARANTINED, reason="to be replaced"))
        case 7:
            usage = backend.usage()
            assert 0 <= usage.entries <= KEYS + MARKS
            assert len({entry.key for entry in backend.entries(EntryFilter())}) <= KEYS + MARKS
        case 8:
            backend.evict(dice.randrange(800_000), CREATED_AT, limit=dice.randrange(1, 8))
        case 9:
            take_turns(backend, key, dice)
        case _:
            look_up(backend, [a_key(dice.randrange(KEYS)) for _ in range(5)])


def take_turns(backend: Backend, key: StateKey, dice: random.Random) -> None:
    """Ask for the lease on `key`; whoever has it lets go, or forgets to."""
    owner = f"{os.getpid()} {threading.get_ident()}"
    if backend.leases is None:
        return
    with unless_busy():
        lease = backend.leases.acquire(key, owner, 0.05)
        if (lease.owner, lease.outcome) != (owner, None):
            backend.leases.wait(key, 0.01)
        elif dice.random() < 0.8:
            backend.leases.renew(key, owner, 0.05)
            backend.leases.release(key, owner, dice.choice(list(Outcome)))


def look_up(backend: Backend, keys: list[StateKey]) -> None:
    entry = backend.longest(keys, CREATED_AT)
    if entry is None:
        return
    assert entry.key in keys
    blob = backend.read(entry)
    if blob is not None:
        assert blob == a_blob(entry.key, entry.blob_bytes)
    else:  # only because the entry has gone before it
        later = backend.longest([entry.key], CREATED_AT)
        assert later is None or later.blob != entry.blob


def opened(root: str) -> Backend:
    return open_file_backend(Path(root), patience_s=PATIENCE_S)


def race(root: str, seed: int, count: int) -> bool:
    """`count` processes open a new store at the same moment, and each publishes an entry."""

    def contend(number: int) -> None:
        backend = opened(root)
        assert publish(backend, an_entry(KEYS + number))
        backend.close()

    return at_once(contend, count)


def mix(opened: Callable[[], Backend], calls: int, seed: int, count: int) -> bool:
    """`count` processes make so many random calls each."""

    def work(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        backend = opened()
        for _ in range(calls):
            step(backend, dice)
        backend.close()

    return side_by_side(work, count)


def kill(root: str, seed: int, count: int) -> bool:
    """Random calls until SIGKILL, also while the store is opened."""

    def work(dice: random.Random, ready: Callable[[], object]) -> None:
        backend = opened(root)
        ready()
        while True:
            step(backend, dice)

    return killed_in_pairs(work, seed, count, 0.08, while_opening=True)


VERBS: dict[str, Verb] = {
    "race": race,
    "mix": lambda root, seed, count: mix(partial(opened, root), 80, seed, count),
    "kill": kill,
}

if __name__ == "__main__":
    end_with(VERBS)
