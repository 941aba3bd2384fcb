"""Processes that write into one budgeted store at once, for `test_budgeted`.

    python -m tests.statestore.budget_worker URL WRITERS PUTS

Exit status 0: the totals that an onlooker read never went 5 % over the budget, and what was left at
the end is at most the budget and not much less.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from statestore.backends.base import Backend
from statestore.backends.budget import Budget
from statestore.backends.budgeted import Budgeted
from statestore.errors import UnavailableError
from statestore.eviction import make_policy
from statestore.settings import open_store
from tests.statestore.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish
from tests.statestore.backend_worker import fork, succeeded

STATE = 2000  # bytes
BUDGET = 200 * STATE


def run_worker(url: str, *, writers: int, puts: int) -> subprocess.CompletedProcess[str]:
    """Start this module as a process and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", "tests.statestore.budget_worker", url, str(writers), str(puts)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


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
        seen = backend.longest([a_key(dice.randrange(8 * puts)) for _ in range(8)], CREATED_AT)
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


def main(url: str, writers: int, puts: int) -> bool:
    open_place(url).close()
    ready, go = os.pipe()
    stop, end = os.pipe()

    def child(work: partial[None]) -> int:
        def run() -> None:
            os.close(go)
            os.close(end)
            work()

        return fork(run)

    onlooker = child(partial(watch, url, stop))
    crew = [child(partial(write, url, puts, ready, writer)) for writer in range(writers)]
    os.close(go)
    written = succeeded(crew)
    os.close(end)
    kept = succeeded([onlooker])
    backend = open_place(url)
    left = backend.usage().blob_bytes
    backend.close()
    if not 0.9 * BUDGET <= left <= BUDGET:
        sys.stderr.write(f"{left} bytes are left in a budget of {BUDGET}\n")
        return False
    return written and kept


if __name__ == "__main__":
    _, where, writer_count, put_count = sys.argv
    sys.exit(0 if main(where, int(writer_count), int(put_count)) else 1)
