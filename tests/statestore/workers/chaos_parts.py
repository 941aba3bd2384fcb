"""The parts that processes of `chaos_worker` play: one function each, a turn at a time.

Every state is made from its number, so whoever finds one knows what it should be, bit for bit. What
a process has met is added to a row of numbers that it shares with its parent, and outlives it.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from statestore import Identity, StateStore
from statestore.backends.leases import Outcome
from statestore.cli import main
from statestore.entry import Change, Role, Status
from statestore.errors import BackendError, UnavailableError
from statestore.keys import StateKey
from statestore.schema import DType, State, Tensor
from statestore.store import PutOutcome
from tests.places.backend_places import a_key, digest

#: What is counted, a column each.
COLUMNS: Final = (
    *("writes", "present", "dropped", "reads", "hits", "failed", "wrong", "torn", "commands"),
    *("slowest_s", "highest", "highest_of_tenant"),  # the largest so far; bytes
)
HIGHEST: Final = frozenset({"slowest_s", "highest", "highest_of_tenant"})

LARGEST: Final = 0.008  # of the budget: five that are just being written are within 5 %
FILLED: Final = 4  # times the budget: what all states come to
TENANT: Final = "tenant"  # whose are every fourth
OURS: Final = {name: Identity(digest("model"), name) for name in ("default", TENANT)}
LEASE_S: Final = 0.5
GRACE_S: Final = 30  # of a gc beside writers: more than the slowest write takes
#: How commands may end: well; with nothing found; with a key that has gone meanwhile.
WELL: Final = frozenset({0, 2, 5})
UNSOUND: Final = 3
NO_ROOM: Final = 4  # how an import ends where some states are worth less than all that is there


@dataclass
class Part:
    """One process's store, dice, and row of the shared numbers."""

    url: str
    budget: int  # bytes, of the store
    store: StateStore
    row: np.ndarray
    scratch: Path  # a directory of its own
    dice: random.Random
    _torn: float = field(default=0.0)

    def add(self, column: str, amount: float = 1.0) -> None:
        """Count; of a column in `HIGHEST`, keep the largest."""
        place = COLUMNS.index(column)
        before = self.row[place]
        self.row[place] = max(before, amount) if column in HIGHEST else before + amount

    def note_torn(self) -> None:
        """What lookups of this process found unsound, since the last time."""
        samples = [s for m in self.store.metrics.quarantined.collect() for s in m.samples]
        torn = sum(sample.value for sample in samples if sample.name.endswith("_total"))
        self.add("torn", torn - self._torn)
        self._torn = torn


def numbers(budget: int) -> int:
    """How many states there are to put."""
    return int(2 * FILLED / LARGEST)  # they are half as large as the largest, on average


def namespace_of(number: int) -> str:
    return TENANT if number % 4 == 0 else "default"


def content(number: int, budget: int) -> np.ndarray:
    """What no other number has, of a size of its own."""
    dice = np.random.default_rng(number)
    return dice.integers(0, 1 << 31, int(dice.integers(16, LARGEST * budget / 4)), "<i4")


def state_of(number: int, budget: int) -> State:
    values = content(number, budget)
    return State("rwkv-test/1", (Tensor.of("x", DType.I32, [len(values)], values),))


def is_right(found: State, key: StateKey, budget: int) -> bool:
    return bytes(found.tensors[0].data) == content(key.n_tokens - 1, budget).tobytes()


def put(store: StateStore, number: int, budget: int, *, pinned: bool = False) -> PutOutcome:
    return store.put(
        OURS[namespace_of(number)],
        a_key(number),
        state_of(number, budget),
        token_digest=digest(f"tokens {number}"),
        role=Role.SEGMENT,
        pinned=pinned,
        cost_s=1.0,
    )


def write(part: Part) -> None:
    """As a worker does: who holds the lease publishes, others wait."""
    number = part.dice.randrange(numbers(part.budget))
    owner = str(os.getpid())
    leases = part.store.leases
    assert leases is not None
    try:
        if leases.acquire(a_key(number), owner, LEASE_S).owner != owner:
            leases.wait(a_key(number), LEASE_S / 10)
            return
    except UnavailableError:  # computing goes on without
        part.add("failed")
    began = time.monotonic()
    outcome = put(part.store, number, part.budget, pinned=part.dice.random() < 0.01)
    part.add("slowest_s", time.monotonic() - began)
    name = {PutOutcome.PUBLISHED: "writes", PutOutcome.PRESENT: "present"}
    part.add(name.get(outcome, "dropped"))
    with suppress(UnavailableError):
        leases.release(a_key(number), owner, Outcome.PUBLISHED)


def read(part: Part) -> None:
    """The first of a few keys that is stored, compared with what it should be."""
    whose = part.dice.randrange(4)
    several = range(whose, numbers(part.budget), 4)
    keys = [a_key(part.dice.choice(several)) for _ in range(part.dice.randrange(1, 6))]
    began = time.monotonic()
    found = part.store.find(OURS[namespace_of(whose)], keys)
    part.add("slowest_s", time.monotonic() - began)
    part.add("reads")
    part.note_torn()
    if found is None:
        return
    part.add("hits")
    if found.entry.key not in keys or not is_right(found.state, found.entry.key, part.budget):
        part.add("wrong")


def make_room(part: Part) -> None:
    """A little below the budget, in all or of the tenant."""
    whose = TENANT if part.dice.random() < 0.3 else None
    share = part.budget // 4 if whose else part.budget
    limit = part.dice.choice([1, 3, 20])
    with counted(part):
        part.store.backend.evict(int(0.97 * share), time.time(), namespace=whose, limit=limit)
    time.sleep(part.dice.uniform(0, 0.1))


def meddle(part: Part) -> None:
    """Pins, unpins, bars, labels and deletes, by key."""
    number = part.dice.randrange(numbers(part.budget))
    key = a_key(number)
    with counted(part):
        match part.dice.randrange(8):
            case 0:
                part.store.update(key, pinned=True)
            case 1:
                part.store.delete(key)
            case 2:
                barred = Change(status=Status.QUARANTINED, reason="to be replaced")
                part.store.backend.update(key, barred)
            case 3:
                part.store.update(key, labels={"by": str(os.getpid())})
            case _:  # so that few are pinned
                for each in range(number, number + 20):
                    part.store.update(a_key(each), pinned=False)
    time.sleep(part.dice.uniform(0, 0.1))


def operate(part: Part) -> None:
    """One command of an operator beside all this."""
    archive = part.scratch / "states.rwkvar"
    commands: list[list[str]] = [
        ["gc", "--grace", str(GRACE_S)],
        ["verify", "--fix", "--grace", str(GRACE_S), "--threads", "2"],
        ["verify", "--namespace", TENANT, "--threads", "1"],
        ["evict", "--to", str(int(0.95 * part.budget)), "--yes"],
        ["evict", "--larger-than", str(int(LARGEST * part.budget * 0.95)), "--yes"],
        ["unpin", "--pinned", "--yes"],
        ["ls", "--limit", "50"],
        ["stats"],
    ]
    if archive.exists():
        commands.append(["import", str(archive), "--threads", "1"])
    else:
        commands.append(["export", str(archive), "--namespace", TENANT])
    chosen = part.dice.choice(commands)
    code = ended(["--store", part.url, *chosen])
    part.add("commands")
    if code == UNSOUND:
        part.add("torn")
    elif code not in WELL and (chosen[0], code) != ("import", NO_ROOM):
        part.add("failed")
        sys.stderr.write(f"{' '.join(chosen)} ended with {code}\n")
    if chosen[0] == "import":
        archive.unlink()


def ended(arguments: list[str]) -> int:
    """A command's exit status; its output is thrown away, its errors are not."""
    try:
        main(arguments, prog_name="statestore")
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def watch(part: Part) -> None:
    """The highest totals that anybody sees."""
    with counted(part):
        part.add("highest", part.store.usage().blob_bytes)
        part.add("highest_of_tenant", part.store.usage(TENANT).blob_bytes)
    time.sleep(0.002)  # the others want the processor too


class counted(suppress):  # noqa: N801 - reads as `suppress` does
    """Whoever asks as an operator is told of failures: they are counted."""

    def __init__(self, part: Part) -> None:
        super().__init__(BackendError)
        self._part = part

    def __exit__(self, kind, error, trace) -> bool:  # type: ignore[no-untyped-def]
        suppressed = bool(super().__exit__(kind, error, trace))
        if suppressed:
            self._part.add("failed")
        return suppressed


PARTS: Final[tuple[Callable[[Part], None], ...]] = (
    *(write, write, write, read, read, make_room, meddle, operate),
)
