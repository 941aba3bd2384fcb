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
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import alembic.command  # noqa: F401 - loaded here once, not in every child

from statestore.backends.base import Backend
from statestore.backends.file import open_file_backend
from statestore.backends.leases import Outcome
from statestore.entry import Change, EntryFilter, Status
from statestore.errors import UnavailableError
from statestore.keys import StateKey
from tests.statestore.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish

KEYS = 30  # that `step` plays with
MARKS = 16  # further ones, published once and left alone
PATIENCE_S = 60.0
BUDGET = 300_000  # bytes that `churn` keeps to
BLOB_LIMIT = 20_000  # bytes of one of its blobs

#: Processes that one test kills: a dozen, or as many as somebody has the time for.
KILLS = int(os.environ.get("TEST_KILLS", "12"))


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
    """`count` processes make 80 random calls each."""

    def work(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        backend = open_file_backend(root, patience_s=PATIENCE_S)
        for _ in range(80):
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


def churn(opened: Callable[[], Backend], seed: int, count: int) -> bool:
    """Over a store that is too full: three writers, two readers and two evictors.

    `count` times one of them is killed, and another one takes its place at once.
    """
    dice = random.Random(seed)

    def fill() -> None:
        backend = opened()
        for number in range(4 * KEYS, 4 * KEYS + 2 * BUDGET // BLOB_LIMIT):
            publish(backend, an_entry(number, blob_bytes=BLOB_LIMIT, score=dice.random()))
        backend.close()

    def start(work: Callable[[Backend, random.Random], None]) -> int:
        number = dice.randrange(1 << 30)
        return fork(partial(forever, opened, work, number))

    well = succeeded([fork(fill)])
    parts = [write, write, write, read, read, make_room, make_room]
    running = {start(part): part for part in parts}
    for _ in range(count):
        time.sleep(dice.uniform(0.02, 0.1))
        victim = dice.choice(list(running))
        part = running.pop(victim)
        well &= killed(victim)
        running[start(part)] = part
    ends = [killed(child) for child in running]  # of every one
    return well and all(ends)


def killed(child: int) -> bool:
    """End it; ``False`` where an exception had ended it before."""
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def forever(
    opened: Callable[[], Backend], work: Callable[[Backend, random.Random], None], seed: int
) -> None:
    dice = random.Random(seed)
    backend = opened()
    while True:
        work(backend, dice)


def write(backend: Backend, dice: random.Random) -> None:
    """As a worker does: one that holds the lease publishes, the others wait for it."""
    number = dice.randrange(4 * KEYS)
    take_turns(backend, a_key(number), dice)
    size, name = dice.randrange(BLOB_LIMIT), dice.choice(["default", "tenant"])
    publish(backend, an_entry(number, blob_bytes=size, score=dice.random(), namespace=name))


def read(backend: Backend, dice: random.Random) -> None:
    look_up(backend, [a_key(dice.randrange(4 * KEYS)) for _ in range(5)])
    with unless_busy():
        backend.touch(an_entry(dice.randrange(4 * KEYS)), CREATED_AT, dice.random())


def make_room(backend: Backend, dice: random.Random) -> None:
    if dice.random() < 0.3:
        backend.evict(BUDGET // 4, CREATED_AT, namespace="tenant", limit=5)
    backend.evict(BUDGET, CREATED_AT, limit=dice.choice([1, 10, 256]))


def churn_files(root: Path, seed: int, count: int) -> bool:
    """`churn` over a file store."""
    return churn(partial(open_file_backend, root, patience_s=PATIENCE_S), seed, count)


if __name__ == "__main__":
    verbs = {"race": race, "mix": mix, "kill": kill, "churn": churn_files}
    _, verb, where, seed_text, count_text = sys.argv
    sys.exit(0 if verbs[verb](Path(where), int(seed_text), int(count_text)) else 1)
