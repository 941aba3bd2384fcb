"""Processes that use one store at once, for `test_concurrency` and `test_migrations`.

    python -m tests.statestore.backend_worker VERB ROOT SEED COUNT

This process loads the libraries and opens nothing; the processes that open a store are forked from
it, so that hundreds of them cost little. Its exit status is 0 if each of them did what it should.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import alembic.command  # noqa: F401 - loaded here once, not in every child

from statestore.backends.base import Backend
from statestore.backends.file import open_file_backend
from statestore.entry import EntryFilter, Status
from statestore.keys import StateKey
from tests.statestore.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish

KEYS = 30  # that `step` plays with
MARKS = 16  # further ones, published once and left alone
PATIENCE_S = 60.0


def run_worker(verb: str, root: Path, seed: int, count: int) -> subprocess.CompletedProcess[str]:
    """Start this module as a process and wait for it."""
    arguments = (sys.executable, "-m", "tests.statestore.backend_worker", verb, root, seed, count)
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child; its process id. An exception there ends it with status 1."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def succeeded(children: list[int]) -> bool:
    ends = [os.waitpid(child, 0)[1] for child in children]  # waits for every one
    return all(end == 0 for end in ends)


def step(backend: Backend, dice: random.Random) -> None:
    """One random call, and what must hold of its result whatever others do meanwhile."""
    number = dice.randrange(KEYS)
    key = a_key(number)
    match dice.randrange(10):
        case 0 | 1 | 2:
            publish(backend, an_entry(number, blob_bytes=dice.randrange(40_000)))
        case 3:
            backend.delete(key, "deleted")
        case 4:
            backend.touch(an_entry(number), CREATED_AT + dice.random(), dice.random())
        case 5:
            backend.update(key, pinned=dice.random() < 0.5, labels={"by": str(os.getpid())})
        case 6:
            backend.update(key, status=Status.QUARANTINED, reason="to be replaced")
        case 7:
            usage = backend.usage()
            assert 0 <= usage.entries <= KEYS + MARKS
            assert len({entry.key for entry in backend.entries(EntryFilter())}) <= KEYS + MARKS
        case _:
            look_up(backend, [a_key(dice.randrange(KEYS)) for _ in range(5)])


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


def race(root: Path, seed: int, count: int) -> bool:
    """`count` processes open a new store at the same moment, and each publishes an entry."""
    read_end, write_end = os.pipe()

    def contend(number: int) -> None:
        os.close(write_end)
        os.read(read_end, 1)  # returns when the parent closes its end
        backend = open_file_backend(root, patience_s=PATIENCE_S)
        assert publish(backend, an_entry(KEYS + number))
        backend.close()

    children = [fork(partial(contend, number)) for number in range(count)]
    os.close(read_end)
    os.close(write_end)
    return succeeded(children)


def mix(root: Path, seed: int, count: int) -> bool:
    """`count` processes make 150 random calls each."""

    def work(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        backend = open_file_backend(root, patience_s=PATIENCE_S)
        for _ in range(150):
            step(backend, dice)
        backend.close()

    return succeeded([fork(partial(work, number)) for number in range(count)])


def kill(root: Path, seed: int, count: int) -> bool:
    """`count` times: two processes make random calls until SIGKILL ends them at a random moment.

    Every fifth time the moment is counted from their start, so that it may meet the opening.
    """
    dice = random.Random(seed)

    def work(number: int, opened: int) -> None:
        mine = random.Random(number)
        backend = open_file_backend(root, patience_s=PATIENCE_S)
        os.write(opened, b"!")
        while True:
            step(backend, mine)

    for attempt in range(count):
        read_end, write_end = os.pipe()
        seeds = dice.sample(range(1 << 30), 2)
        children = [fork(partial(work, number, write_end)) for number in seeds]
        os.close(write_end)
        for _ in children if attempt % 5 else ():
            os.read(read_end, 1)
        time.sleep(dice.uniform(0, 0.08))
        for child in children:
            os.kill(child, signal.SIGKILL)
        ends = [os.waitpid(child, 0)[1] for child in children]
        os.close(read_end)
        if ends != [signal.SIGKILL, signal.SIGKILL]:
            return False  # an exception ended it before the signal did
    return True


if __name__ == "__main__":
    verbs = {"race": race, "mix": mix, "kill": kill}
    _, verb, where, seed_text, count_text = sys.argv
    sys.exit(0 if verbs[verb](Path(where), int(seed_text), int(count_text)) else 1)
