"""What a runtime holds, and for how long: states in memory, leases, its place in the queue; with a
store that is too slow, a request that fails, and a caller who leaves.
"""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.engines import Engine
from rwkv_runtime.session import Session
from statestore import ChunkRule, StateStore, open_store
from statestore.backends.base import Backend
from statestore.backends.leases import Lease, Leases, Outcome
from statestore.backends.wrappers.faulty import Delay, Fail, Fault, Faulty, Hang
from statestore.errors import UnavailableError
from statestore.keys import plan
from statestore.once import Once

RULE = ChunkRule(chunk=16, min_chunk=4, stride=1)
DOCUMENT = [1 + i % 200 for i in range(320)]
WAIT_S = 60.0


class Watched:
    """An engine that remembers the states it made, weakly; `fails` makes its logits fail."""

    def __init__(self, inner: Engine) -> None:
        self._inner = inner
        self._made: list[weakref.ref[torch.Tensor]] = []
        self.fails = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def _noted(self, result: tuple[torch.Tensor, object]) -> tuple[torch.Tensor, object]:
        self._made.append(weakref.ref(result[0]))
        return result

    def prefill(self, tokens: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        return self._noted(self._inner.prefill(tokens, state))

    def decode(self, token: int, state: object) -> tuple[torch.Tensor, object]:
        return self._noted(self._inner.decode(token, state))

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise MemoryError
        return self._inner.logits(output)

    def alive(self) -> int:
        """Points of prompts that somebody holds."""
        gc.collect()
        return sum(made() is not None for made in self._made)


@pytest.fixture
def engine(model_path: Path) -> Watched:
    return Watched(load_engine(model_path, rule=RULE, threads=1))


@pytest.fixture
def backend(store_url: str) -> Iterator[Backend]:
    with open_store(store_url) as opened:
        yield opened.backend


def runtime_of(engine: Watched, backend: Backend) -> Runtime:
    return Runtime(engine, StateStore(backend, codec_name="raw"))  # type: ignore[arg-type]


def leases_of(backend: Backend) -> Leases:
    assert backend.leases is not None
    return backend.leases


def session_of(runtime: Runtime) -> Session:
    return runtime._session


def lease_on(runtime: Runtime, backend: Backend, document: list[int]) -> Lease | None:
    """On the document's end, as another process sees it."""
    planned = plan([document], session_of(runtime).identity.fingerprint, RULE)
    return leases_of(backend).wait(planned.boundaries[-1].key, 0.0)


def test_a_store_that_hangs_costs_no_more_memory_with_each_request(
    engine: Watched, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """What was dropped is let go, though its lease still has to be given back."""
    caplog.set_level(logging.CRITICAL)
    hang = Hang()
    faulty = Faulty(backend, Fault(("publish",), hang))
    with runtime_of(engine, faulty) as runtime:
        runtime.warm([DOCUMENT])
        assert hang.met.wait(WAIT_S)
        few = engine.alive()
        for number in range(6):
            runtime.warm([[200 + number, *DOCUMENT]])
        assert engine.alive() <= few <= 6
        hang.released.set()
        runtime.flush()
        assert engine.alive() == 0


def test_the_document_s_end_takes_the_place_of_a_stop_on_its_way(
    engine: Watched, backend: Backend
) -> None:
    """However slow the store, and without a wait."""
    hang = Hang()
    faulty = Faulty(backend, Fault(("publish",), hang))
    with runtime_of(engine, faulty) as runtime:
        began = time.monotonic()
        runtime.warm([DOCUMENT])
        assert time.monotonic() - began < WAIT_S
        hang.released.set()
        runtime.flush()
        assert runtime.warm([DOCUMENT]).computed_tokens == 0
    assert runtime.store is not None
    assert runtime.store.metrics.value("puts_total", outcome="dropped") > 0


def test_nobody_computes_a_stop_because_it_was_dropped(engine: Watched, backend: Backend) -> None:
    """Its lease says to look for something deeper: else all who wait would compute at once."""
    hang = Hang()
    faulty = Faulty(backend, Fault(("publish",), hang))
    with runtime_of(engine, faulty) as runtime:
        runtime.warm([DOCUMENT])
        hang.released.set()
        runtime.flush()
        assert runtime.store is not None
        assert runtime.store.metrics.value("puts_total", outcome="dropped") > 0
        identity = session_of(runtime).identity
        leases = [
            leases_of(backend).wait(boundary.key, 0.0)
            for boundary in plan([DOCUMENT], identity.fingerprint, RULE).boundaries
        ]
    assert [lease for lease in leases if lease and lease.outcome is not Outcome.PUBLISHED] == []


def test_a_request_that_fails_at_the_end_keeps_nothing(engine: Watched, backend: Backend) -> None:
    with runtime_of(engine, backend) as runtime:
        engine.fails = True
        with pytest.raises(MemoryError):
            runtime.warm([DOCUMENT])
        engine.fails = False
        runtime.flush()
        assert engine.alive() == 0
        lease = lease_on(runtime, backend, DOCUMENT)
        assert lease is None or lease.outcome is not None, "nobody waits for it"
        assert runtime.warm([DOCUMENT]).computed_tokens == 0, "what was computed is stored"


def test_a_stream_does_not_hold_the_prompt_s_state(engine: Watched, backend: Backend) -> None:
    with runtime_of(engine, backend) as runtime:
        stream = runtime.generate([DOCUMENT], max_tokens=50)
        for _ in range(3):
            next(stream)
        runtime.flush()
        assert engine.alive() == 1, "the stream's own, and not the prompt's"
        next(stream)


class CallerLeftError(Exception):
    """The caller went away."""


def test_a_reading_cancelled_between_chunks_holds_nothing_and_is_gone_on_with(
    engine: Watched, backend: Backend
) -> None:
    """By whoever comes next, at once: nobody waits for its leases to lapse."""

    def cancel(done: int, whole: int) -> None:
        if done >= 160:
            raise CallerLeftError

    with runtime_of(engine, backend) as runtime:
        with pytest.raises(CallerLeftError):
            next(runtime.generate([DOCUMENT], progress=cancel))
        runtime.flush()
        assert engine.alive() == 0
        leases = [
            leases_of(backend).wait(boundary.key, 0.0)
            for boundary in plan(
                [DOCUMENT], session_of(runtime).identity.fingerprint, RULE
            ).boundaries
        ]
        assert [lease for lease in leases if lease is not None and lease.outcome is None] == []
        with runtime_of(engine, backend) as other:
            assert 0 < other.warm([DOCUMENT]).computed_tokens <= len(DOCUMENT) - 160 + RULE.chunk


def test_a_text_cancelled_between_tokens_holds_nothing(engine: Watched, backend: Backend) -> None:
    with runtime_of(engine, backend) as runtime:
        stream = runtime.generate([DOCUMENT], max_tokens=50)
        for _ in range(3):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        runtime.flush()
        assert engine.alive() == 0
        assert runtime.prefill([DOCUMENT]).computed_tokens == 0


def first() -> Callable[[], bool]:
    numbers = count()
    return lambda: next(numbers) == 0


def test_a_lease_outlives_a_failure_to_renew_it(backend: Backend) -> None:
    """And is given back, so that nobody waits for it to lapse."""
    down = Fail(UnavailableError("down"))
    faulty = Faulty(backend, Fault(("renew",), down, first()))
    once: Once[int] = Once(lambda: faulty.leases, least_ttl_s=300.0)
    key = plan([DOCUMENT], b"\0" * 32, RULE).boundaries[-1].key
    turn = once.join(key)
    assert turn.holds
    turn._renew_at = 0.0
    turn.renew()
    assert faulty.struck["renew"] == 1
    turn.end(Outcome.NOT_STORED)
    seen = leases_of(backend).wait(key, 0.0)
    assert seen is not None
    assert seen.outcome is Outcome.NOT_STORED


class Slow(Watched):
    """Takes its time for each chunk."""

    def prefill(self, tokens: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        time.sleep(0.02)
        return super().prefill(tokens, state)


@pytest.mark.parametrize(("lease_s", "renewed"), [(0.2, True), (600.0, False)])
def test_a_leader_holds_on_to_its_lease_while_it_computes(
    model_path: Path, backend: Backend, lease_s: float, renewed: bool
) -> None:
    """Between chunks, where a third of its time has gone; a long one costs no round trip."""
    one_stretch = ChunkRule(chunk=16, min_chunk=4, stride=1000)
    counted = Faulty(backend, Fault(("renew",), Delay(0.0)))
    engine = Slow(load_engine(model_path, rule=one_stretch, threads=1))
    store = StateStore(counted, codec_name="raw")
    renewals = [0]  # so far, at each chunk's end: the put renews it once more

    def note(_done: int, _whole: int) -> None:
        renewals.append(counted.struck["renew"])

    with Runtime(engine, store, lease_s=lease_s) as runtime:  # type: ignore[arg-type]
        runtime.warm([DOCUMENT], progress=note)
    assert bool(renewals[-1]) is renewed


SIGTERMED = """
import sys, threading
from pathlib import Path
from rwkv_runtime import Runtime, load_engine
from statestore import ChunkRule, StateStore, open_store
from statestore.backends.wrappers.faulty import Delay, Fault, Faulty
model, url = sys.argv[1:]
store = open_store(url)
slow = StateStore(Faulty(store.backend, Fault(("publish",), Delay(0.3))))
runtime = Runtime(load_engine(Path(model), rule=ChunkRule(16, 4), threads=1), slow)
for number in range(3):
    runtime.warm([[number] * 40])
print("warm", flush=True)
threading.Event().wait(60)
"""


def test_sigterm_writes_what_waits(model_path: Path, store_url: str) -> None:
    command = [sys.executable, "-c", SIGTERMED, str(model_path), store_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "warm\n"
        process.terminate()
        assert process.wait(WAIT_S) == -signal.SIGTERM
    with open_store(store_url) as store:
        assert [entry.key.n_tokens for entry in store.list()] == [40, 40, 40]
