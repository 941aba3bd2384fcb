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
from functools import partial
from pathlib import Path

from tests.statestore.backend_places import an_entry, publish
from tests.statestore.backend_worker import KEYS, fork, step, succeeded
from tests.statestore.redis_places import open_url

LARGE = 6_000_000  # bytes: several parts, so that a kill meets a write


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


if __name__ == "__main__":
    verbs = {"mix": mix, "kill": kill}
    _, verb, where, seed_text, count_text = sys.argv
    sys.exit(0 if verbs[verb](where, int(seed_text), int(count_text)) else 1)
