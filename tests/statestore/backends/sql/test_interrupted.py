"""Lookups that are interrupted anywhere, as by Ctrl-C in a program that goes on."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from statestore import Identity, PutOutcome, Role, StateStore, open_store
from statestore.blobs.filesystem import PART, FilesystemBlobs
from statestore.keys import StateKey
from statestore.schema import DType, State, Tensor
from tests.places.backend_places import a_key, digest

INTERRUPTS = 400
IDENTITY = Identity(digest("model"))


class Interruption(BaseException):
    """Nobody catches it by mistake."""


class Interrupter:
    """Raises in this thread, at random moments at most `most_s` apart, while it is let."""

    def __init__(self, most_s: float = 0.0015) -> None:
        self._most_s = most_s
        self.count = 0
        self._may = False
        self._over = threading.Event()
        self._me = threading.get_ident()
        self._thread = threading.Thread(target=self._send)

    @contextmanager
    def running(self) -> Iterator[None]:
        before = signal.signal(signal.SIGUSR1, self._met)
        gc.disable()  # in its callbacks (hypothesis has one) an interruption would go astray
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            signal.signal(signal.SIGUSR1, before)
            gc.enable()
            gc.collect()

    @contextmanager
    def let(self) -> Iterator[None]:
        with suppress(Interruption):
            self._may = True
            yield
        self._may = False

    def _met(self, *_: object) -> None:
        if self._may:
            self._may = False
            self.count += 1
            raise Interruption

    def _send(self) -> None:
        dice = random.Random(1)
        while not self._over.wait(dice.uniform(0.0, self._most_s)):
            signal.pthread_kill(self._me, signal.SIGUSR1)


def open_blobs(root: Path) -> int:
    """Descriptors of this process that lead to a blob."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of this very look has gone
            count += descriptor.readlink().is_relative_to(root / "blobs")
    return count


@pytest.mark.timeout(120)
def test_interrupted_lookups_leave_nothing_open(tmp_path: Path) -> None:
    tensor = Tensor.of("a", DType.F32, (1 << 16,), bytes(4 << 16))
    keys = [a_key(1), a_key(0)]
    with open_store(f"{tmp_path.as_uri()}?codec=raw") as store:
        put = store.put(
            IDENTITY,
            keys[-1],
            State("plain", (tensor,)),
            token_digest=digest("tokens"),
            role=Role.PROMPT,
        )
        assert put is PutOutcome.PUBLISHED
        interrupter = Interrupter()
        with interrupter.running():
            while interrupter.count < INTERRUPTS:
                with interrupter.let():
                    look(store, keys)
        assert open_blobs(tmp_path) == 0
        assert store.find(IDENTITY, keys) is not None
        if os.fork() == 0:  # waits for those who are inside
            os._exit(0)
        os.wait()


@pytest.mark.timeout(120)
def test_interrupted_puts_leave_nothing_open_and_nothing_half_written(tmp_path: Path) -> None:
    blobs = FilesystemBlobs(tmp_path / "blobs")
    (tmp_path / "blobs").mkdir()
    names = (f"{number % 256:02x}{number:06d}" for number in itertools.count())
    interrupter = Interrupter()
    with interrupter.running():
        while interrupter.count < INTERRUPTS:
            with interrupter.let():
                for name in itertools.islice(names, 20):
                    blobs.put(name, [bytes(100), bytes(1000)])
    assert open_blobs(tmp_path) == 0
    kept = list(blobs.list())
    assert kept
    assert {info.size_bytes for info in kept} == {1100}
    assert not any(info.name.endswith(PART) for info in kept)


def look(store: StateStore, keys: list[StateKey]) -> None:
    for _ in range(20):
        store.find(IDENTITY, keys, touch=False, tally=False)
