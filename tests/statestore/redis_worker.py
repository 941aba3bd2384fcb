"""Processes that use one Redis store at once, for `test_redis_concurrency`; see `forked`.

python -m tests.statestore.redis_worker VERB URL SEED COUNT
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable

from statestore.backends.base import Backend
from statestore.backends.leases import Outcome
from statestore.entry import Change, Status
from tests.statestore.backend_places import CREATED_AT, a_key, an_entry, publish
from tests.statestore.backend_worker import KEYS, look_up, mix, step
from tests.statestore.forked import end_with, fork, killed, killed_in_pairs, run_module
from tests.statestore.redis_places import open_url

LARGE = 6_000_000  # bytes: several parts, so that a kill meets a write
NUMBERS = 200  # of states in a riot; all together they come to 25 times the budget
BUDGET = 3_000_000
MOST = 2_500_000  # bytes of one state in a riot


def run_worker(verb: str, url: str, seed: int, count: int) -> subprocess.CompletedProcess[str]:
    return run_module("tests.statestore.redis_worker", verb, url, seed, count)


def kill(url: str, seed: int, count: int) -> bool:
    """Writes, large and small, until SIGKILL."""

    def work(dice: random.Random, ready: Callable[[], object]) -> None:
        backend = open_url(url)
        backend.usage()  # now it is connected
        ready()
        while True:
            large = an_entry(dice.randrange(KEYS), blob_bytes=dice.randrange(LARGE))
            backend.delete(large.key, "deleted")
            publish(backend, large)
            step(backend, dice)

    return killed_in_pairs(work, seed, count, 0.1)


def mix_behind_a_fork(url: str, seed: int, count: int) -> bool:
    """`count` processes make 100 random calls each, with one backend opened before the fork."""
    backend = open_url(url)
    publish(backend, an_entry(0))
    return mix(lambda: backend, 100, seed, count)


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
    return all(ends)


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
    end_with({"mix": mix_behind_a_fork, "kill": kill, "riot": riot})
