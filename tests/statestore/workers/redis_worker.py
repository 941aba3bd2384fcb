"""Processes that use one Redis store at once, for `test_redis_concurrency`; see `forked`.

python -m tests.statestore.workers.redis_worker VERB URL SEED COUNT
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable

from tests.places.backend_places import an_entry, publish
from tests.places.redis_places import open_url
from tests.statestore.workers.backend_worker import KEYS, mix, step
from tests.statestore.workers.forked import end_with, killed_in_pairs, run_module

LARGE = 6_000_000  # bytes: several parts, so that a kill meets a write


def run_worker(verb: str, url: str, seed: int, count: int) -> subprocess.CompletedProcess[str]:
    return run_module("tests.statestore.workers.redis_worker", verb, url, seed, count)


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


if __name__ == "__main__":
    end_with({"mix": mix_behind_a_fork, "kill": kill})
