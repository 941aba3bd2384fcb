"""Requests side by side over a store, and what goes wrong: tenants, one document for many, a store
that is down, states and steps that fail, the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.engines import Engine, Rwkv7Engine
from rwkv_runtime.errors import BusyError
from rwkv_runtime.serving import Ended, Failed, Request, Streams
from rwkv_runtime.session.admission import Everything
from statestore import Namespace, StateStore, open_store
from statestore.backends.wrappers.faulty import Delay, Fail, Fault, Faulty
from statestore.errors import ClosedError, UnavailableError
from tests.checkout import ROOT
from tests.runtime.serving.listening import (
    ENDLESS,
    HANG_S,
    LONG,
    PROMPTS,
    RULE,
    SAMPLINGS,
    WIDTH,
    Listener,
    all_ended,
    alone,
    by_itself,
    close_runtimes,
    serving,
    submit,
    wait_until,
)

DOCUMENT = [(7 * i * i + i) % 256 for i in range(100)]


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Rwkv7Engine:
    made = load_engine(model_path, rule=RULE, threads=1)
    assert isinstance(made, Rwkv7Engine)
    return made


@pytest.fixture
def store(store_url: str) -> Iterator[StateStore]:
    with open_store(store_url) as opened:
        yield opened
        close_runtimes()


def test_documents_are_read_beside_streams_and_found(
    engine: Rwkv7Engine, store: StateStore
) -> None:
    streams = serving(engine, store, readers=1)
    beside = submit(streams, Request([PROMPTS[1]], max_tokens=ENDLESS))
    beside.wait_for(2)
    inside, busy = threading.Event(), threading.Event()

    def hold(done: int, whole: int) -> None:
        inside.set()
        assert busy.wait(HANG_S)

    found = []
    reader = threading.Thread(target=lambda: found.append(streams.read([DOCUMENT], None, hold)))
    reader.start()
    assert inside.wait(HANG_S)
    with pytest.raises(BusyError, match="documents"):
        streams.read([DOCUMENT])
    busy.set()
    reader.join(HANG_S)
    assert (found[0].cached_tokens, found[0].computed_tokens) == (0, 100)
    asked = submit(streams, Request([DOCUMENT, [1, 2, 3, 4]], max_tokens=2))
    asked.ended()
    assert asked.started.cached_tokens == 100

    def refuse(done: int, whole: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        streams.read([LONG], None, refuse)
    assert streams.load().documents == 0
    assert beside.ticket is not None
    beside.ticket.cancel()
    assert streams.close()


def test_no_tenant_sees_anothers_states(engine: Rwkv7Engine, store: StateStore) -> None:
    streams = serving(engine, store)
    tenants = [
        Namespace("a", b"salt"),
        Namespace("b", b"salt"),
        Namespace("a", b"pepper"),
        Namespace("a"),
    ]
    texts = []
    for tenant in tenants:
        for cached in (0, len(DOCUMENT)):  # one's own, the second time
            asked = submit(streams, Request([DOCUMENT, [5, 6, 7, 8, cached]], tenant, 8))
            asked.ended()
            assert asked.started.cached_tokens == cached
            texts.append(asked.tokens)
            assert streams._runtime.flush(HANG_S)
    assert texts[::2] == [texts[0]] * 4
    assert texts[1::2] == [texts[1]] * 4
    assert streams.close()


def test_one_document_asked_many_times_at_once_is_read_once(
    engine: Rwkv7Engine, store: StateStore
) -> None:
    streams = serving(engine, store)
    asked = [
        submit(streams, Request([LONG, [n, 1, 2, 3, 4]], max_tokens=3)) for n in range(2 * WIDTH)
    ]
    all_ended(asked)
    computed = sum(listener.started.computed_tokens for listener in asked)
    assert computed == len(LONG) + 2 * WIDTH * 5
    assert streams.close()


def test_whoever_waits_for_anothers_reading_may_go(engine: Rwkv7Engine, store: StateStore) -> None:
    """In this process and, by its lease, in another: here a second runtime of its own."""
    streams = serving(engine, store)
    other = Runtime(engine, store, admission=Everything())
    inside, go_on = threading.Event(), threading.Event()

    def hold(done: int, whole: int) -> None:
        inside.set()
        assert go_on.wait(HANG_S)

    def read(number: int) -> None:
        (streams.read if number else other.warm)([[number, *LONG]], progress=hold)

    for number in (0, 1):
        inside.clear()
        go_on.clear()
        reader = threading.Thread(target=read, args=(number,))
        reader.start()
        assert inside.wait(HANG_S)
        waiting = submit(streams, Request([[number, *LONG]], max_tokens=1))
        wait_until(streams, reading=1, waiting=0)
        assert waiting.ticket is not None
        waiting.ticket.cancel()
        assert waiting.ended() == Ended("cancelled", 0)
        wait_until(streams, reading=0)
        go_on.set()
        reader.join(HANG_S)
        assert not reader.is_alive()
    other.close()
    assert streams.close()


def test_a_dead_store_is_not_in_the_way(
    engine: Rwkv7Engine, store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    faulty = Faulty(store.backend)
    streams = serving(engine, StateStore(faulty))
    early = submit(streams, Request([PROMPTS[3]], max_tokens=200))
    early.wait_for(2)
    everything = ("longest", "read", "publish", "touch", "update", "acquire", "release", "wait")
    faulty.faults = (Fault(everything, Fail(UnavailableError("down"))),)
    late = [submit(streams, Request([p], max_tokens=24)) for p in PROMPTS]
    assert early.ended().completion_tokens == 200
    all_ended(late)
    assert [listener.tokens for listener in late] == [by_itself(engine, n, 0, 24) for n in range(6)]
    assert faulty.struck["longest"] > 0
    streams.close()


def test_a_damaged_state_ends_its_own_stream_alone(engine: Rwkv7Engine, store: StateStore) -> None:
    """A state of NaN, sound as a blob, so that only logits show it."""
    streams = serving(engine, store)
    session = streams._session
    boundary = session.plan([DOCUMENT]).boundaries[-1]
    output, state = engine.prefill(torch.tensor([1]), engine.initial_state())
    with torch.inference_mode():
        bad = tuple(
            type(layer)(layer.att_x_prev, layer.att_kv * torch.nan, layer.ffn_x_prev)
            for layer in state
        )
    store.put(
        session.identity,
        boundary.key,
        engine.to_stored(bad, output),
        token_digest=boundary.token_digest,
        role=boundary.role,
    )
    beside = [submit(streams, Request([p], max_tokens=24, sampling=SAMPLINGS[2])) for p in PROMPTS]
    struck = submit(streams, Request([DOCUMENT], max_tokens=24))
    failed = struck.end()
    assert isinstance(failed, Failed)
    assert "NaN" in str(failed.error)
    assert len(struck.tokens) == 1
    all_ended(beside)
    assert [b.tokens for b in beside] == [by_itself(engine, n, 2, 24) for n in range(6)]
    again = submit(streams, Request([PROMPTS[2]], max_tokens=24))  # its place is as good as new
    again.ended()
    assert again.tokens == by_itself(engine, 2, 0, 24)
    assert streams.close()


class Stumbling:
    """An engine that raises when it is to read one certain token."""

    def __init__(self, inner: Engine, token: int, error: BaseException) -> None:
        self._inner = inner
        self._token = token
        self._error = error

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def decode(self, token: int, state: object) -> tuple[torch.Tensor, object]:
        if token == self._token:
            raise self._error
        return self._inner.decode(token, state)

    def prefill(self, tokens: torch.Tensor, state: object) -> tuple[torch.Tensor, object]:
        if self._token in tokens:
            raise self._error
        return self._inner.prefill(tokens, state)


def test_a_step_that_fails_ends_its_streams_and_no_others(
    engine: Rwkv7Engine, caplog: pytest.LogCaptureFixture
) -> None:
    text = alone(engine, Request([PROMPTS[4]], max_tokens=24), WIDTH)
    stumbling = Stumbling(engine, text[0], RuntimeError("out of memory"))
    streams = Streams(Runtime(stumbling, None), width=WIDTH)  # type: ignore[arg-type]
    for _ in range(WIDTH + 1):  # no place is lost
        failed = submit(streams, Request([PROMPTS[4]], max_tokens=24)).end()
        assert isinstance(failed, Failed)
        assert str(failed.error) == "out of memory"
    assert "step failed" in caplog.text
    assert streams.load().ready
    texts = [alone(engine, Request([p], max_tokens=24), WIDTH) for p in PROMPTS]
    sound = next(n for n, tokens in enumerate(texts) if text[0] not in tokens)
    after = submit(streams, Request([PROMPTS[sound]], max_tokens=24))
    assert after.ended() == Ended("length", 24)
    assert streams.load().active == 0
    assert streams.close()


def test_no_reader_is_lost_whatever_a_reading_raises(
    engine: Rwkv7Engine, store: StateStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Some libraries raise what is no `Exception`."""
    token = next(t for t in range(256) if t not in DOCUMENT)
    stumbling = Stumbling(engine, token, SystemExit("out of order"))
    streams = serving(stumbling, store, readers=1)  # type: ignore[arg-type]
    failed = submit(streams, Request([[*DOCUMENT, token]])).end()
    assert isinstance(failed, Failed)
    assert "out of order" in str(failed.error)
    assert "no common error" in caplog.text
    submit(streams, Request([DOCUMENT], max_tokens=1)).ended()
    assert streams.close()


def test_a_forked_child_has_no_streams_and_tells_nobody(engine: Rwkv7Engine) -> None:
    streams = serving(engine, None)
    begun = submit(streams, Request([PROMPTS[0]], max_tokens=ENDLESS))
    begun.wait_for(2)
    holding, forked = threading.Event(), threading.Event()

    def hold() -> None:
        with streams._changed, streams._decoder._changed:
            holding.set()
            assert forked.wait(HANG_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(HANG_S)
    child = os.fork()
    if child == 0:
        signal.alarm(int(HANG_S))
        told = []
        begun._then = told.append
        try:
            assert streams.load().ready is False
            with pytest.raises(ClosedError):
                streams.submit(Request([PROMPTS[0]]), Listener())
            assert begun.ticket is not None
            begun.ticket.cancel()
            assert streams.close()
            os._exit(len(told))
        finally:
            os._exit(99)
    forked.set()
    assert os.waitpid(child, 0)[1] == 0
    holder.join(HANG_S)
    assert begun.ticket is not None
    begun.ticket.cancel()
    begun.ended()
    assert streams.close()


def test_a_thread_that_ends_is_said_aloud(
    engine: Rwkv7Engine, caplog: pytest.LogCaptureFixture
) -> None:
    first = int(Runtime(engine, None).prefill([PROMPTS[4]]).logits.argmax())
    stumbling = Stumbling(engine, first, SystemExit(1))
    streams = Streams(Runtime(stumbling, None), width=WIDTH)  # type: ignore[arg-type]
    failed = submit(streams, Request([PROMPTS[4]], max_tokens=24)).end()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, ClosedError)
    assert "has ended" in caplog.text
    streams._decoder._thread.join(HANG_S)
    assert not streams.load().ready
    with pytest.raises(ClosedError, match="restart"):
        streams.submit(Request([PROMPTS[0]]), Listener())
    assert streams.close()


def test_closing_finishes_what_was_begun_and_stores_it(
    engine: Rwkv7Engine, store: StateStore, store_url: str
) -> None:
    runtime = Runtime(engine, store, admission=Everything())
    streams = Streams(runtime, width=WIDTH, readers=2)
    begun = [submit(streams, Request([p], max_tokens=40)) for p in (PROMPTS * 4)]
    assert streams.close(HANG_S)
    assert [listener.last for listener in begun] == [Ended("length", 40)] * len(begun)
    with pytest.raises(ClosedError):
        streams.submit(Request([PROMPTS[0]]), Listener())
    with pytest.raises(ClosedError):
        streams.read([DOCUMENT])
    assert not streams.load().ready
    assert streams.close()
    with open_store(store_url) as opened:  # beside the first: nothing is left in its hands
        kept = {entry.key.n_tokens for entry in opened.list()}
    assert {len(p) for p in PROMPTS} <= kept
    runtime.close()


ENDS = """
import sys
from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.serving import Request, Streams
from tests.runtime.serving.listening import ENDLESS, submit
streams = Streams(Runtime(load_engine(sys.argv[1], threads=1), None))
submit(streams, Request([[1, 2, 3]], max_tokens=ENDLESS)).wait_for(9)
"""


def test_a_process_may_end_in_the_midst_of_a_stream(model_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDS, str(model_path)], cwd=ROOT, timeout=HANG_S, check=False
    )
    assert ended.returncode == 0


def test_closing_waits_for_a_slow_store(engine: Rwkv7Engine, store: StateStore) -> None:
    slow = StateStore(Faulty(store.backend, Fault(("publish",), Delay(0.5))))
    streams = serving(engine, slow)
    begun = submit(streams, Request([PROMPTS[0]], max_tokens=1))
    assert streams.close(HANG_S)
    assert begun.last == Ended("length", 1)
    assert [entry.key.n_tokens for entry in store.list()] == [len(PROMPTS[0])]


def test_closing_waits_no_longer_than_it_is_told(engine: Rwkv7Engine, store: StateStore) -> None:
    streams = serving(engine, store, readers=2)
    endless = [submit(streams, Request([p], max_tokens=ENDLESS)) for p in (PROMPTS * 4)]
    endless[0].wait_for(3)
    outcome: list[BaseException] = []

    def keep_on(done: int, whole: int) -> None:
        endless[0].wait_for(len(endless[0].tokens) + 50)  # or its end

    def read() -> None:
        try:
            streams.read([LONG], None, keep_on)
        except ClosedError as error:
            outcome.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(streams, documents=1)
    assert not streams.close(0.3)
    for listener in endless:
        last = listener.end()
        assert isinstance(last, Failed)
        assert isinstance(last.error, ClosedError)
    reader.join(HANG_S)
    assert len(outcome) == 1
