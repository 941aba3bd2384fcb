"""A process with one open store that answers questions: the other end of `faulty_system`.

    python -m tests.statestore.workers.faulty_worker

Each line of its input is an expression over the functions below. It answers with a line: whether
it went well, and the value, or ``Kind: message`` of what was raised. Every state is made from its
number, so whoever finds one knows what it should be.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from statestore import Identity, open_store
from statestore.backends.leases import Lease, Outcome
from statestore.entry import EntryFilter, Role
from statestore.once import Once, Patience
from statestore.schema import DType, State, Tensor
from tests.places.backend_places import a_blob, a_key, digest

IDENTITY = Identity(digest("model"))
LENGTH = 5000  # numbers of a state

store: Any = None
once: Once[bytes] = Once(lambda: store.leases)
turns: dict[int, Any] = {}


def reopen(url: str) -> None:
    """Open a store, in place of the one that was open."""
    global store  # noqa: PLW0603 - questions come one after the other
    close()
    store = open_store(url)


def close() -> None:
    global store  # noqa: PLW0603
    if store is not None:
        store.close()
    store = None


def content(number: int) -> bytes:
    return a_blob(a_key(number), 4 * LENGTH)


def put(number: int, **given: Any) -> str:
    state = State("rwkv-test/1", (Tensor.of("x", DType.I32, [LENGTH], content(number)),))
    given = {"token_digest": digest("t"), "role": Role.SEGMENT, "cost_s": 1.0, **given}
    return str(store.put(IDENTITY, a_key(number), state, **given))


def find(*numbers: int) -> int | None:
    """The number of what was found; -1 where it is not what it should be."""
    found = store.find(IDENTITY, [a_key(number) for number in numbers])
    if found is None:
        return None
    number = int(found.entry.key.n_tokens) - 1
    right = number in numbers and bytes(found.state.tensors[0].data) == content(number)
    return number if right else -1


def count(name: str, **labels: str) -> float:
    return float(store.metrics.value(name, **labels))


def stored() -> list[int]:
    return sorted(entry.key.n_tokens - 1 for entry in store.list(EntryFilter()))


def usage() -> tuple[int, int, int]:
    """Entries, bytes, and how many are quarantined."""
    found = store.usage()
    return found.entries, found.blob_bytes, found.quarantined


def sweep() -> tuple[int, int]:
    """Blobs that no entry named, whatever their age, and entries that had expired."""
    swept = store.sweep(grace_s=-10)
    return swept.blobs, swept.expired


def lease(number: int, owner: str = "another", ttl_s: float = 10.0) -> tuple[str, float, str]:
    return _shown(store.leases.acquire(a_key(number), owner, ttl_s))


def renew(number: int, owner: str = "another", ttl_s: float = 10.0) -> bool:
    return bool(store.leases.renew(a_key(number), owner, ttl_s))


def release(number: int, outcome: str, owner: str = "another") -> None:
    store.leases.release(a_key(number), owner, Outcome(outcome))


def turn(number: int, compute_s: float, *, works_s: float = 0.0, keep: bool = True) -> str:
    """Take a turn as a reading does: what came of it. Who computes works for `works_s`."""
    mine = once.join(a_key(number))
    ruling = mine.settle(Patience(compute_s))
    if ruling.value != "compute":
        return ruling.value
    if find(number) == number:
        mine.end(Outcome.PUBLISHED)
        return "stored"
    until = time.monotonic() + works_s
    while time.monotonic() < until:
        time.sleep(0.02)
        mine.renew()
    if not keep:
        turns[number] = mine
        return "computed"
    kept = put(number) != "dropped"
    mine.end(Outcome.PUBLISHED if kept else Outcome.NOT_STORED)
    return "computed"


def _shown(lease: Lease) -> tuple[str, float, str]:
    return lease.owner, lease.remaining_s, str(lease.outcome or "")


def main() -> None:
    for line in sys.stdin:
        try:
            answer = True, eval(line)
        except Exception as error:
            answer = False, f"{type(error).__name__}: {error}"
        sys.stdout.write(repr(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
