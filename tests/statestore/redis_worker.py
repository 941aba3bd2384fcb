"""Processes that use one Redis store at once, for `test_redis_concurrency`.

    python -m tests.statestore.redis_worker VERB URL SEED COUNT

As in `backend_worker`, the processes are forked from one that has loaded the libraries.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from statestore.backends.base import Backend
from statestore.backends.leases import Outcome
from statestore.entry import Change, Status
from tests.statestore.backend_places import CREATED_AT, a_key, an_entry, publish
from tests.statestore.backend_worker import KEYS, fork, look_up, step, succeeded
from tests.statestore.redis_places import open_url

LARGE = 6_000_000  # bytes: several parts, so that a kill meets a write
NUMBERS = 200  # of states in a riot; all together they come to 25 times the budget
BUDGET = 3_000_000
MOST = 2_500_000  # bytes of one state in a riot


def run_worker(verb: str, url: str, seed: int, count: int) -> subprocess.CompletedProcess[str]:
    """Start this module as a process and wait for it."""
    arguments = (sys.executable, "-m", "tests.statestore.redis_worker", verb, url, seed, count)
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def mix(url: str, seed: int, count: int) -> bool:
    """`count` processes make 100 random calls each, with one backend opened before the fork."""
    backend = open_url(url)
    publish(backend, an_entry(0))

    def work(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        for _ in range(100):
            step(backend, dice)
        backend.close()

    return succeeded([fork(partial(work, number)) for number in range(count)])


def kill(url: str, seed: int, count: int) -> bool:
    """`count` times: two processes write, large and small, until SIGKILL ends them."""
    dice = random.Random(seed)

    def work(number: int, opened: int) -> None:
        mine = random.Random(number)
        backend = open_url(url)
        backend.usage()  # now it is connected
        os.write(opened, b"!")
        while True:
            large = an_entry(mine.randrange(KEYS), blob_bytes=mine.randrange(LARGE))
            backend.delete(large.key, "deleted")
            publish(backend, large)
            step(backend, mine)

    for _ in range(count):
        read_end, write_end = os.pipe()
        children = [fork(partial(work, dice.randrange(1 << 30), write_end)) for _ in range(2)]
        os.close(write_end)
        for _ in children:
            os.read(read_end, 1)
        time.sleep(dice.uniform(0, 0.1))
        for child in children:
            os.kill(child, signal.SIGKILL)
        ends = [os.waitpid(child, 0)[1] for child in children]
        os.close(read_end)
        if ends != [signal.SIGKILL, signal.SIGKILL]:
            return False  # an exception ended it before the signal did
    return True


def riot(url: str, seed: int, count: int) -> bool:
    """Writers, readers and evictors; `count` times one of them is killed, and another comes.

    A writer makes room behind each put, so what is stored exceeds the budget by what two writers,
    and one that was just killed, have put; and what is pinned is small.
    """
    dice = random.Random(seed)
    roles = [write, write, read, read, make_room]
    opened = os.pipe()

    def start(role: Callable[[Backend, random.Random], None]) -> int:
        number = dice.randrange(1 << 30)

        def work() -> None:
            mine, backend = random.Random(number), open_url(url)
            backend.usage()  # now it is connected
            os.write(opened[1], b"!")
            while True:
                role(backend, mine)

        child = fork(work)
        os.read(opened[0], 1)
        return child

    running, ends = [start(role) for role in roles], []
    backend = open_url(url)
    for _ in range(count):
        place = dice.randrange(len(roles))
        time.sleep(dice.uniform(0, 0.1))
        ends.append(killed(running[place]))
        running[place] = start(roles[place])
        assert backend.usage().blob_bytes < BUDGET + 3 * MOST + 500_000
    ends += [killed(child) for child in running]
    return all(end == signal.SIGKILL for end in ends)  # else an exception ended it before


def killed(child: int) -> int:
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def write(backend: Backend, dice: random.Random) -> None:
    """Compute under a lease: publish, make room, release."""
    number = dice.randrange(NUMBERS)
    leases = backend.leases
    assert leases is not None
    owner = str(os.getpid())
    if leases.acquire(a_key(number), owner, 0.2).owner != owner:
        leases.wait(a_key(number), 0.1)
        return
    size = dice.randrange(MOST if dice.random() < 0.3 else 40_000)
    fields = {"score": dice.random(), "pinned": size < 4000, "namespace": dice.choice("ab")}
    publish(backend, an_entry(number, blob_bytes=size, **fields))
    backend.evict(BUDGET, time.time(), limit=100)
    leases.release(a_key(number), owner, Outcome.PUBLISHED)


def read(backend: Backend, dice: random.Random) -> None:
    """Look up, check, touch; sometimes bar or unpin."""
    number = dice.randrange(NUMBERS)
    look_up(backend, [a_key(dice.randrange(NUMBERS)) for _ in range(9)])
    backend.touch(an_entry(number), CREATED_AT + dice.random(), dice.random())
    if dice.random() < 0.1:
        backend.update(a_key(number), Change(status=Status.QUARANTINED, pinned=False))


def make_room(backend: Backend, dice: random.Random) -> None:
    """Evict, now all namespaces and now one."""
    backend.evict(BUDGET, time.time(), limit=dice.choice([1, 5, 100]))
    backend.evict(BUDGET // 3, time.time(), namespace=dice.choice("ab"), limit=5)


if __name__ == "__main__":
    verbs = {"mix": mix, "kill": kill, "riot": riot}
    _, verb, where, seed_text, count_text = sys.argv
    sys.exit(0 if verbs[verb](where, int(seed_text), int(count_text)) else 1)
