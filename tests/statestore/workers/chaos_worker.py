"""Writers, readers, evictors and operators over one store, killed at random for as long as it is
told; see `test_chaos`.

    python -m tests.statestore.workers.chaos_worker URL BUDGET SECONDS

Prints what they met as JSON. Exit status 1: one of them ended by itself.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import alembic.command  # noqa: F401 - loaded here once, not in every child
import numpy as np

import statestore.backends.redis.backend
import statestore.backends.sql.file
import statestore.backends.sql.fleet  # noqa: F401
from statestore.cli.main import _LINES
from statestore.settings import open_store
from tests.statestore.workers.chaos_parts import (
    COLUMNS,
    HIGHEST,
    PARTS,
    Part,
    numbers,
    put,
    watch,
)
from tests.statestore.workers.forked import fork, killed, succeeded

PROGRESS_S = 15.0
PAUSES_S = 0.02, 0.3  # between two kills, drawn from
#: At least, however slow the machine.
ENOUGH = {"writes": 5, "hits": 10, "kills": 8, "commands": 1}
HANG_S = 120.0  # beyond the time, and still not enough

for line in _LINES:
    line.load()


class Crew:
    """The processes of one store, and the numbers that they share: a row for each part's players.

    Whoever takes a dead one's part goes on in its row.
    """

    def __init__(self, url: str, budget: int, scratch: Path) -> None:
        self._url, self._budget, self._scratch = url, budget, scratch
        roles = (*PARTS, watch)
        shared = mmap.mmap(-1, 8 * len(roles) * len(COLUMNS))
        self._rows = np.frombuffer(shared, np.float64).reshape(len(roles), len(COLUMNS))
        self._dice = random.Random(budget)
        self.children = [self._start(role) for role in range(len(roles))]
        self.kills = 0
        self.well = True

    def _start(self, role: int) -> int:
        return fork(partial(self._play, role, self._dice.randrange(1 << 30)))

    def _play(self, role: int, seed: int) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # commands print
        scratch = self._scratch / str(role)
        scratch.mkdir(exist_ok=True)
        store = open_store(self._url)
        play: Callable[[Part], None] = (*PARTS, watch)[role]
        part = Part(self._url, self._budget, store, self._rows[role], scratch, random.Random(seed))
        while True:
            play(part)

    def lose_one(self) -> None:
        """Kill one of all but the onlooker; another takes its part."""
        role = self._dice.randrange(len(PARTS))
        self.well &= killed(self.children[role])
        self.kills += 1
        self.children[role] = self._start(role)

    def end(self) -> None:
        ends = [killed(child) for child in self.children]  # of every one
        self.well &= all(ends)

    def lacks(self, least: Mapping[str, int]) -> bool:
        seen = self.summary()
        return any(seen[name] < count for name, count in least.items())

    def summary(self) -> dict[str, float]:
        totals = {
            name: float(self._rows[:, i].max() if name in HIGHEST else self._rows[:, i].sum())
            for i, name in enumerate(COLUMNS)
        }
        return {**totals, "kills": self.kills}


def fill(url: str, budget: int) -> None:
    """The store is full when they come."""
    with open_store(url) as store, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: put(store, number, budget), range(numbers(budget) // 4)))


def run(url: str, budget: int, seconds: float) -> bool:
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        if not succeeded([fork(partial(fill, url, budget))]):
            return False
        crew = Crew(url, budget, Path(scratch))
        began = told = time.monotonic()
        dice = random.Random(1)
        while crew.well and (time.monotonic() < began + seconds or crew.lacks(ENOUGH)):
            assert time.monotonic() < began + seconds + HANG_S, crew.summary()
            time.sleep(dice.uniform(*PAUSES_S))
            crew.lose_one()
            if time.monotonic() - told >= PROGRESS_S:
                told = time.monotonic()
                tell(f"{told - began:.0f} s", crew.summary(), budget)
        crew.end()
    print(json.dumps(crew.summary()))
    return crew.well


def tell(what: str, seen: dict[str, float], budget: int) -> None:
    shown = ("writes", "dropped", "reads", "hits", "kills", "commands", "failed", "wrong", "torn")
    counts = ", ".join(f"{name} {seen[name]:.0f}" for name in shown)
    sys.stderr.write(f"    {what}: {counts}, highest {100 * seen['highest'] / budget:.1f} %\n")
    sys.stderr.flush()


if __name__ == "__main__":
    logging.getLogger("statestore.puts").setLevel(logging.ERROR)
    _, where, budget_bytes, length_s = sys.argv
    sys.exit(0 if run(where, int(budget_bytes), float(length_s)) else 1)
