"""Processes that use one fleet's store at once, for the tests of PostgreSQL.

    python -m tests.statestore.postgres_worker VERB URL SEED COUNT

As `backend_worker`: this process opens nothing, those that do are forked from it, and its exit
status is 0 if each of them did what it should.
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

import alembic.command  # noqa: F401 - loaded here once, not in every child

from statestore.backends.fleet import FleetPlace, open_fleet_backend, open_revisions
from statestore.backends.sql import SqlBackend
from statestore.errors import UnavailableError
from tests.statestore.backend_places import a_key, an_entry, publish
from tests.statestore.backend_worker import KEYS, churn, fork, step, succeeded


def start_worker(
    verb: str, url: str, seed: int, count: int, errors: int | None = None
) -> subprocess.Popen[str]:
    """Start this module as a process; its errors go where the tests' own go, or to `errors`."""
    arguments = (sys.executable, "-m", "tests.statestore.postgres_worker", verb, url, seed, count)
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )


def run_worker(verb: str, url: str, seed: int, count: int) -> str:
    """Run this module to its end, which has to be a good one; what it printed."""
    worker = start_worker(verb, url, seed, count, subprocess.PIPE)
    output, errors = worker.communicate()
    assert worker.returncode == 0, errors
    assert errors == ""
    return output


def open_backend(url: str) -> SqlBackend:
    return open_fleet_backend(FleetPlace.parse(url))


def race(url: str, seed: int, count: int) -> bool:
    """`count` processes upgrade a catalog at the same moment, and each publishes an entry."""
    read_end, write_end = os.pipe()

    def contend(number: int) -> None:
        os.close(write_end)
        os.read(read_end, 1)  # returns when the parent closes its end
        with open_revisions(FleetPlace.parse(url)) as revisions:
            revisions.upgrade()
        backend = open_backend(url)
        assert publish(backend, an_entry(KEYS + number))
        backend.close()

    children = [fork(partial(contend, number)) for number in range(count)]
    os.close(read_end)
    os.close(write_end)
    return succeeded(children)


def mix(url: str, seed: int, count: int) -> bool:
    """`count` processes make 60 random calls each."""

    def work(number: int) -> None:
        dice = random.Random(seed * 1000 + number)
        backend = open_backend(url)
        for _ in range(60):
            step(backend, dice)
        backend.close()

    return succeeded([fork(partial(work, number)) for number in range(count)])


def once(url: str, seed: int, count: int) -> bool:
    """`count` processes put the same 20 keys; each prints the ones that it won."""

    def work() -> None:
        backend = open_backend(url)
        for number in range(20):
            if publish(backend, an_entry(seed + number)):
                os.write(1, f"{a_key(seed + number).hex}\n".encode())
        backend.close()

    return succeeded([fork(work) for _ in range(count)])


def kill(url: str, seed: int, count: int) -> bool:
    """`count` times: two processes make random calls until SIGKILL ends them at a random moment."""
    dice = random.Random(seed)

    def work(number: int, opened: int) -> None:
        mine = random.Random(number)
        backend = open_backend(url)
        os.write(opened, b"!")
        while True:
            step(backend, mine)

    for _ in range(count):
        read_end, write_end = os.pipe()
        children = [fork(partial(work, seed, write_end)) for seed in dice.sample(range(1 << 30), 2)]
        os.close(write_end)
        for _ in children:
            os.read(read_end, 1)
        time.sleep(dice.uniform(0, 0.15))
        for child in children:
            os.kill(child, signal.SIGKILL)
        ends = [os.waitpid(child, 0)[1] for child in children]
        os.close(read_end)
        if ends != [signal.SIGKILL, signal.SIGKILL]:
            return False  # an exception ended it before the signal did
    return True


def endure(url: str, seed: int, count: int) -> bool:
    """`count` processes make calls until standard input ends; failures are UnavailableError alone.

    Each prints ``up`` when a call succeeds after a start or a failure, ``down`` when one fails.
    """
    over, end = os.pipe()

    def work(number: int) -> None:
        os.close(end)
        os.set_blocking(over, False)
        dice = random.Random(seed + number)
        backend = open_backend(url)
        told = b""
        while not ended(over):
            try:
                step(backend, dice)
                news = b"up\n"
            except UnavailableError:
                news = b"down\n"
                time.sleep(0.02)
            if news != told:
                os.write(1, news)
            told = news
        backend.close()

    children = [fork(partial(work, number)) for number in range(count)]
    sys.stdin.read()
    os.close(end)
    return succeeded(children)


def ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


VERBS: dict[str, Callable[[str, int, int], bool]] = {
    "race": race,
    "mix": mix,
    "once": once,
    "kill": kill,
    "endure": endure,
    "churn": lambda url, seed, count: churn(partial(open_backend, url), seed, count),
}

if __name__ == "__main__":
    _, verb, where, seed_text, count_text = sys.argv
    sys.exit(0 if VERBS[verb](where, int(seed_text), int(count_text)) else 1)
