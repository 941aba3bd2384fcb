"""Faults that are injected: the right calls, in the right way, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from statestore.backends.base import Backend
from statestore.backends.leases import Outcome
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.wrappers.faulty import (
    OF_BACKEND,
    OF_LEASES,
    Chance,
    Delay,
    Every,
    Fail,
    Fault,
    Faulty,
    FlipBit,
    Hang,
    Lose,
    Operation,
    Truncate,
)
from statestore.entry import Change, EntryFilter
from statestore.errors import FullError, UnavailableError
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish

NOW = CREATED_AT + 10_000
ENTRY = an_entry(0)
DOWN = Fail(UnavailableError("down"))
CALLS: dict[Operation, Callable[[Backend], Any]] = {
    "longest": lambda backend: backend.longest([ENTRY.key], NOW),
    "read": lambda backend: backend.read(ENTRY),
    "publish": lambda backend: publish(backend, an_entry(1)),
    "touch": lambda backend: backend.touch(ENTRY, NOW, 0.0),
    "update": lambda backend: backend.update(ENTRY.key, Change(pinned=True)),
    "delete": lambda backend: backend.delete(ENTRY.key, "deleted"),
    "entries": lambda backend: list(backend.entries(EntryFilter())),
    "departed": lambda backend: backend.departed([ENTRY.key]),
    "usage": lambda backend: backend.usage(),
    "evict": lambda backend: backend.evict(0, NOW),
    "sweep": lambda backend: backend.sweep(NOW, 0.0),
    "acquire": lambda backend: backend.leases.acquire(a_key(7), "me", 5.0),  # type: ignore[union-attr]
    "renew": lambda backend: backend.leases.renew(a_key(7), "me", 5.0),  # type: ignore[union-attr]
    "release": lambda backend: backend.leases.release(a_key(7), "me", Outcome.PUBLISHED),  # type: ignore[union-attr]
    "wait": lambda backend: backend.leases.wait(a_key(7), 0.001),  # type: ignore[union-attr]
}


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    backend = MemoryBackend()
    publish(backend, ENTRY)
    yield Faulty(backend)
    backend.close()


def test_every_operation_can_fail_alone(faulty: Faulty) -> None:
    assert set(CALLS) == {*OF_BACKEND, *OF_LEASES}
    for operation in CALLS:
        faulty.faults = (Fault((operation,), DOWN),)
        for other, call in CALLS.items():
            if other == operation:
                with pytest.raises(UnavailableError, match="down"):
                    call(faulty)
            else:
                call(faulty)
        assert faulty.struck[operation] == 1
    faulty.faults = ()
    for call in CALLS.values():
        call(faulty)
    assert faulty.struck.total() == len(CALLS)


def test_what_fails_did_not_happen_and_what_got_lost_did(faulty: Faulty) -> None:
    for effect, stored in ((Fail(FullError("full")), False), (Lose(FullError("full")), True)):
        faulty.faults = (Fault(("publish",), effect),)
        with pytest.raises(FullError):
            publish(faulty, an_entry(1))
        assert (faulty.longest([a_key(1)], NOW) is not None) == stored


def test_every_third(faulty: Faulty) -> None:
    faulty.faults = (Fault(("longest",), DOWN, Every(3)),)
    assert [failed(faulty) for _ in range(7)] == [False, False, True, False, False, True, False]


def test_a_share_by_a_seed(faulty: Faulty) -> None:
    patterns = []
    for seed in (1, 1, 2):
        faulty.faults = (Fault(("longest",), DOWN, Chance(0.3, seed)),)
        patterns.append([failed(faulty) for _ in range(100)])
    assert patterns[0] == patterns[1] != patterns[2]
    assert 10 < sum(patterns[0]) < 50


def failed(faulty: Faulty) -> bool:
    try:
        return faulty.longest([ENTRY.key], NOW) is None
    except UnavailableError:
        return True


def test_a_delay(faulty: Faulty) -> None:
    faulty.faults = (Fault(("read",), Delay(0.05)),)
    began = time.perf_counter()
    assert faulty.read(ENTRY) == a_blob(ENTRY.key)
    assert time.perf_counter() - began >= 0.05


def test_a_call_hangs_until_it_is_released(faulty: Faulty) -> None:
    hang = Hang()
    faulty.faults = (Fault(("longest",), hang),)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(faulty.longest([ENTRY.key], NOW)))
    thread.start()
    assert hang.met.wait(30.0)
    assert not found
    hang.released.set()
    thread.join(30.0)
    assert found == [ENTRY]


@pytest.mark.parametrize("bit", [0, 7, 4001, 8 * 1000 + 3])
def test_one_bit_comes_back_wrong(faulty: Faulty, bit: int) -> None:
    faulty.faults = (Fault(("read",), FlipBit(bit)),)
    blob = faulty.read(ENTRY)
    assert blob is not None
    wrong = int.from_bytes(blob, "little") ^ int.from_bytes(a_blob(ENTRY.key), "little")
    assert wrong == 1 << bit % 8000
    faulty.faults = ()
    assert faulty.read(ENTRY) == a_blob(ENTRY.key)


@pytest.mark.parametrize("keep", [0, 1, 999, 5000])
def test_a_blob_comes_back_cut_short(faulty: Faulty, keep: int) -> None:
    faulty.faults = (Fault(("read",), Truncate(keep)),)
    assert faulty.read(ENTRY) == a_blob(ENTRY.key)[:keep]


@pytest.mark.parametrize("effect", [FlipBit(3), Truncate(3)])
def test_a_miss_stays_a_miss(faulty: Faulty, effect: FlipBit | Truncate) -> None:
    faulty.faults = (Fault(("read",), effect),)
    assert faulty.read(an_entry(99)) is None


def test_faults_come_in_their_order(faulty: Faulty) -> None:
    hang = Hang()
    faulty.faults = (Fault(("longest",), DOWN), Fault(("longest",), hang))
    with pytest.raises(UnavailableError):
        faulty.longest([ENTRY.key], NOW)
    assert not hang.met.is_set()
