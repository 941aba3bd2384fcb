"""Processes that use one fleet's store at once, for the tests of PostgreSQL; see `forked`.

python -m tests.statestore.workers.postgres_worker VERB URL SEED COUNT
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import alembic.command  # noqa: F401 - loaded here once, not in every child

from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.fleet import FleetPlace, open_fleet_backend, open_revisions
from statestore.errors import UnavailableError
from tests.checkout import ROOT
from tests.places.backend_places import a_key, an_entry, publish
from tests.statestore.workers.backend_worker import KEYS, mix, step
from tests.statestore.workers.forked import (
    Verb,
    at_once,
    command,
    end_with,
    fork,
    killed_in_pairs,
    side_by_side,
    succeeded,
)


def start_worker(
    verb: str, url: str, seed: int, count: int, errors: int | None = None
) -> subprocess.Popen[str]:
    """Start this module as a process; its errors go where the tests' own go, or to `errors`."""
    return subprocess.Popen(
        command("tests.statestore.workers.postgres_worker", verb, url, seed, count),
        cwd=ROOT,
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

    def contend(number: int) -> None:
        with open_revisions(FleetPlace.parse(url)) as revisions:
            revisions.upgrade()
        backend = open_backend(url)
        assert publish(backend, an_entry(KEYS + number))
        backend.close()

    return at_once(contend, count)


def once(url: str, seed: int, count: int) -> bool:
    """`count` processes put the same 20 keys; each prints the ones that it won."""

    def work(_number: int) -> None:
        backend = open_backend(url)
        for number in range(20):
            if publish(backend, an_entry(seed + number)):
                os.write(1, f"{a_key(seed + number).hex}\n".encode())
        backend.close()

    return side_by_side(work, count)


def kill(url: str, seed: int, count: int) -> bool:
    """Random calls until SIGKILL."""

    def work(dice: random.Random, ready: Callable[[], object]) -> None:
        backend = open_backend(url)
        ready()
        while True:
            step(backend, dice)

    return killed_in_pairs(work, seed, count, 0.15)


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


VERBS: dict[str, Verb] = {
    "race": race,
    "mix": lambda url, seed, count: mix(partial(open_backend, url), 60, seed, count),
    "once": once,
    "kill": kill,
    "endure": endure,
}

if __name__ == "__main__":
    end_with(VERBS)
