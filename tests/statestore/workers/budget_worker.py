"""Processes that write into one budgeted store at once, for `test_budgeted`.

    python -m tests.statestore.workers.budget_worker URL WRITERS PUTS

Exit status 0: the totals that an onlooker read never went 5 % over the budget, and what was left at
the end is at most the budget and not much less.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial

from statestore.backends.base import Backend
from statestore.backends.wrappers.budget import Budget
from statestore.backends.wrappers.budgeted import Budgeted
from statestore.entry import EntryFilter
from statestore.errors import UnavailableError
from statestore.eviction import make_policy
from statestore.settings import open_store
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish
from tests.statestore.workers.forked import fork, run_module, succeeded

STATE = 2000  # bytes
BUDGET = 200 * STATE
LAST = 1 << 40  # of no writer


def run_worker(url: str, *, writers: int, puts: int) -> subprocess.CompletedProcess[str]:
    return run_module("tests.statestore.workers.budget_worker", url, writers, puts)


def open_place(url: str) -> Backend:
    return open_store(url).backend


def write(url: str, puts: int, ready: int, writer: int) -> None:
    """Puts of new states, with lookups and hits between them."""
    dice = random.Random(writer)
    inner = open_place(url)
    backend = Budgeted(inner, Budget(BUDGET), make_policy())
    os.read(ready, 1)  # returns when the parent closes its end: all begin at once
    for number in range(puts):
        mine = writer * puts + number
        assert publish(backend, an_entry(mine, blob_bytes=STATE, created_at=CREATED_AT + number))
        recent = [max(number - dice.randrange(60), 0) for _ in range(8)]
        seen = backend.longest([a_key(dice.randrange(8) * puts + n) for n in recent], CREATED_AT)
        if seen is not None:
            blob = backend.read(seen)
            assert blob is None or blob == a_blob(seen.key, STATE)
            with suppress(UnavailableError):  # SQLite: a touch does not wait long for the lock
                backend.touch(seen, CREATED_AT + number, 0.0)
    backend.close()


def watch(url: str, stop: int) -> None:
    """Read totals until told to stop; the highest is within the bound."""
    os.set_blocking(stop, False)
    backend = open_place(url)
    highest = 0
    while not stopped(stop):
        highest = max(highest, backend.usage().blob_bytes)
    backend.close()
    assert highest > 0.9 * BUDGET, f"only {highest} of {BUDGET} bytes were ever used"
    assert highest <= 1.05 * BUDGET, f"{highest} bytes in a budget of {BUDGET}"


def stopped(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def settle(url: str) -> str:
    """One put more, and a sweep; what is wrong with what is there then."""
    backend = Budgeted(open_place(url), Budget(BUDGET), make_policy())
    publish(backend, an_entry(LAST, blob_bytes=STATE, created_at=CREATED_AT))
    backend.sweep(time.time() + 1, grace_s=0)
    listed = list(backend.entries(EntryFilter()))
    torn = [entry for entry in listed if backend.read(entry) != a_blob(entry.key, STATE)]
    left = backend.usage().blob_bytes
    backend.close()
    if torn or left != STATE * len(listed):
        return f"{torn} are torn; {left} bytes in {len(listed)} states"
    if not 0.9 * BUDGET <= left <= BUDGET:
        return f"{left} bytes are left in a budget of {BUDGET}"
    return ""


def main(url: str, writers: int, puts: int) -> bool:
    open_place(url).close()
    ready, go = os.pipe()
    stop, end = os.pipe()
    held = [go, end]  # that nobody else may hold open

    def child(work: partial[None]) -> int:
        def run() -> None:
            for pipe in held:
                os.close(pipe)
            work()

        return fork(run)

    def start(writer: int) -> int:
        return child(partial(write, url, puts, ready, writer))

    onlooker = child(partial(watch, url, stop))
    crew = [start(writer) for writer in range(writers)]
    os.close(held.pop(0))
    written = succeeded(crew)
    os.close(held.pop())
    kept = succeeded([onlooker])
    problem = settle(url)
    sys.stderr.write(problem)
    return written and kept and not problem


if __name__ == "__main__":
    _, where, *counts = sys.argv
    sys.exit(0 if main(where, *map(int, counts)) else 1)
