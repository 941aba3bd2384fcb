"""Threads that use one store as requests do, while a test does something to its server.

Every state is made from its number, so a reader knows what it should have found. Whatever is raised
or wrong, and the slowest call, is kept for the test to look at.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from statestore.entry import Role
from statestore.keys import StateKey
from statestore.schema import DType, State, Tensor
from statestore.store import Identity, PutOutcome, StateStore
from tests.places.backend_places import a_key, digest
from tests.places.redis_servers import WAIT_S

THREADS = 4
LARGE, HOT, ALL = 6, 40, 1500  # numbers below: states of two parts; often asked for; in all
SLOWEST_S = 10.0  # far above the timeouts of a call, far below a hang
IDENTITY = Identity(digest("model"))


def state_of(number: int) -> State:
    """1.2 MB for a large one, else 8 kB; from two numbers that no other state has."""
    values = np.arange(300_000 if number < LARGE else 2_000, dtype="<u4") * 7919 + number
    return State("rwkv-test/1", (Tensor.of("x", DType.I32, [len(values)], values.view("<i4")),))


@dataclass
class Load:
    """What the threads met."""

    store: StateStore
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_s: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self, seed: int) -> None:
        """Call until `stop`."""
        dice = random.Random(seed)
        try:
            while not self._over.is_set():
                began = time.monotonic()
                event = self._put(dice) if dice.random() < 0.4 else self._find(dice)
                took = time.monotonic() - began
                with self._lock:
                    self.counts[event] += 1
                    self.slowest_s = max(self.slowest_s, took)
        except BaseException:
            self.problems.append(traceback.format_exc())

    def stop(self) -> None:
        self._over.set()

    def until(self, count: int, *events: str) -> None:
        """Wait until each of these has happened so many times more."""
        wanted = {event: self.counts[event] + count for event in events}
        deadline = time.monotonic() + 2 * WAIT_S
        while any(self.counts[event] < number for event, number in wanted.items()):
            assert not self.problems, self.problems[0]
            assert time.monotonic() < deadline, f"{events} did not happen: {self.counts}"
            time.sleep(0.01)

    def _put(self, dice: random.Random) -> str:
        number = dice.randrange(HOT if dice.random() < 0.3 else ALL)
        put = {"token_digest": digest(f"tokens {number}"), "role": Role.SEGMENT}
        outcome: PutOutcome = self.store.put(IDENTITY, a_key(number), state_of(number), **put)
        return outcome.value

    def _find(self, dice: random.Random) -> str:
        keys: list[StateKey] = [a_key(dice.randrange(HOT)) for _ in range(3)]
        found = self.store.find(IDENTITY, keys)
        if found is None:
            return "miss"
        number = found.entry.key.n_tokens - 1
        expected = state_of(number).tensors[0].data
        if found.entry.key not in keys or bytes(found.state.tensors[0].data) != bytes(expected):
            self.problems.append(f"a wrong state for {number}")
        return "hit"


@contextmanager
def under_load(store: StateStore) -> Iterator[Load]:
    """Threads over `store`; when it ends, nothing may have gone wrong or taken long."""
    load = Load(store)
    threads = [threading.Thread(target=load.run, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        load.until(20, "hit", "published")
        yield load
    finally:
        load.stop()
        for thread in threads:
            thread.join(2 * WAIT_S)
    assert not load.problems, load.problems[0]
    assert not any(thread.is_alive() for thread in threads)
    assert load.slowest_s < SLOWEST_S, load.slowest_s
