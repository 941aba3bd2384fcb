"""Many who want one document compute it once: threads, processes, the death of whoever computes."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rwkv_runtime import Prefill, Runtime, load_engine
from rwkv_runtime.engines import Engine
from statestore import StateStore, open_store
from statestore.backends.base import Backend, Blob
from statestore.backends.leases import Outcome
from statestore.backends.wrapper import Wrapper
from statestore.entry import Entry
from statestore.keys import plan
from statestore.owner import new_owner
from tests.places.postgres_servers import PostgresPlace
from tests.places.redis_servers import running
from tests.runtime.workers.crowd import (
    DOCUMENT,
    RULE,
    STOP,
    Member,
    answers,
    crowd,
    document,
    go,
    half_way,
    question,
)

SIZE = 16
#: What is late on a busy machine is not dead: deadlines have tests of their own.
PATIENT = "find_ms=30000&fetch_ms=30000"
QUESTION = len(question(0))
ELSEWHERE = f"another-{new_owner()}"  # of another machine: nobody here can tell that it died
HANG_S = 120.0  # far above what is waited here, far below that lease


Expected = Callable[[int, list[Member]], dict[int, str]]


@pytest.fixture(scope="module", params=["file", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store of each kind, with a real server where it has one."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "file":
        yield (directory / "store").as_uri()
    elif request.param == "redis":
        with running() as server:
            yield f"{server.url}?{PATIENT}"
    else:
        place = PostgresPlace(directory, timeout_s="30")
        yield f"{place.url}&{PATIENT}"
        place.drop()


@pytest.fixture(scope="module")
def sixteen(url: str, model_path: Path) -> Iterator[list[Member]]:
    """Processes whose clocks are two hours apart."""
    with crowd(model_path, url, SIZE, skewed=True) as members:
        yield members


@pytest.fixture(scope="module")
def expected(model_path: Path) -> Expected:
    """Digests of what members answer about a document, computed afresh."""
    engine = load_engine(model_path, threads=1, rule=RULE)

    @functools.cache
    def read(number: int) -> Prefill:
        with Runtime(engine, None) as runtime:
            return runtime.prefill([document(number)])

    @functools.cache
    def logits(number: int, asked: int) -> str:
        output, _ = engine.prefill(torch.tensor(question(asked)), read(number).state)
        return hashlib.sha256(engine.logits(output).numpy().tobytes()).hexdigest()

    return lambda number, members: {m.number: logits(number, m.number) for m in members}


def test_sixteen_processes_read_one_document_once(
    sixteen: list[Member], expected: Expected
) -> None:
    """With different questions, and clocks that are two hours apart."""
    go(sixteen, 1)
    assert answers(sixteen) == expected(1, sixteen)
    computed = sorted(member.computed for member in sixteen)
    assert computed == [QUESTION] * (SIZE - 1) + [len(DOCUMENT) + QUESTION]


def test_a_leader_killed_half_way_costs_what_it_had_not_stored(
    sixteen: list[Member], expected: Expected
) -> None:
    """All tokens that anybody computed, against the document once and each question."""
    go(sixteen, 2)
    leader = half_way(sixteen)
    leader.kill()
    rest = [member for member in sixteen if member is not leader]
    assert answers(rest) == expected(2, rest)
    total = sum(member.computed for member in sixteen)
    assert leader.computed >= len(DOCUMENT) // 2
    assert total <= 1.1 * (len(DOCUMENT) + SIZE * QUESTION)


def test_a_leader_that_hangs_is_relieved_when_its_lease_lapses(
    url: str, model_path: Path, expected: Expected
) -> None:
    """It goes on later, and neither harms the others nor is harmed."""
    with crowd(model_path, url, 3, lease_s=4.0, skewed=True) as members:
        go(members, 3)
        leader = half_way(members)
        assert leader.process.pid is not None
        os.kill(leader.process.pid, signal.SIGSTOP)
        rest = [member for member in members if member is not leader]
        assert answers(rest) == expected(3, rest)
        total = sum(member.computed for member in rest)
        assert total <= len(DOCUMENT) // 2 + 6 * STOP + len(rest) * QUESTION
        os.kill(leader.process.pid, signal.SIGCONT)
        leader.pipe.send("go on")
        assert answers([leader]) == expected(3, [leader])


class Gated(Wrapper):
    """Publishes once it is opened."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.opened = threading.Event()

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        assert self.opened.wait(120)
        return self.inner.publish(entry, blob, durable=durable)


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Engine:
    return load_engine(model_path, threads=1, rule=RULE)


def digest(read: Prefill) -> str:
    return hashlib.sha256(read.logits.numpy().tobytes()).hexdigest()


def test_threads_read_one_document_once(engine: Engine, store_url: str) -> None:
    asked = [[DOCUMENT, question(number)] for number in range(8)]
    with open_store(store_url) as store, Runtime(engine, store) as runtime:
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(runtime.prefill, asked))
        again = [runtime.prefill(prompt) for prompt in asked[:2]]
    with Runtime(engine, None) as runtime:
        alone = [runtime.prefill(prompt) for prompt in asked[:2]]
    assert [digest(each) for each in read[:2]] == [digest(each) for each in alone]
    assert [digest(each) for each in again] == [digest(each) for each in alone]
    assert sum(prefill.computed_tokens for prefill in read) == len(DOCUMENT) + 8 * QUESTION


def test_what_is_still_being_written_is_taken_from_memory(engine: Engine, store_url: str) -> None:
    """The state goes from one request to the next before the store has it."""
    read_once = DOCUMENT[:64]
    with open_store(store_url) as opened:
        gated = Gated(opened.backend)
        with Runtime(engine, StateStore(gated)) as runtime:
            first = runtime.prefill([read_once, question(1)])
            second = runtime.prefill([read_once, question(2)])
            assert not list(opened.list())
            gated.opened.set()
        assert [first.computed_tokens, second.computed_tokens] == [64 + QUESTION, QUESTION]
        assert [entry.key.n_tokens for entry in opened.list()] == [64]


def test_an_interrupted_leader_lets_the_next_one_compute_at_once(
    engine: Engine, store_url: str
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with open_store(store_url) as store, Runtime(engine, store, lease_s=300.0) as runtime:
        with pytest.raises(KeyboardInterrupt):
            runtime.prefill([[5] * 300], progress=interrupt)
        with Runtime(engine, store) as other:
            assert other.prefill([[5] * 300]).computed_tokens <= 300
        assert runtime.prefill([[5] * 300]).computed_tokens == 0


def test_nobody_waits_longer_than_computing_would_take(engine: Engine, store_url: str) -> None:
    """For one elsewhere who neither computes nor lets its lease go. What it has is waited for, and
    no more: the stretch below it is computed at once, and stored.
    """
    asked = [document(4), question(1)]
    with open_store(store_url) as store, Runtime(engine, store) as runtime:
        runtime.prefill([DOCUMENT])  # from now on its speed is known
        held = plan(asked, engine.fingerprint.digest, RULE).boundaries[-2].key
        leases = store.leases
        assert leases is not None
        assert held.n_tokens == len(DOCUMENT)
        assert leases.acquire(held, ELSEWHERE, 600.0).owner == ELSEWHERE
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(runtime.prefill, asked)
            try:
                read = reading.result(HANG_S)
            finally:
                leases.release(held, ELSEWHERE, Outcome.NOT_STORED)
        assert leases.wait(held, 0.0) is not None
    assert read.computed_tokens == len(DOCUMENT) + QUESTION


def test_no_lease_is_asked_for_where_nothing_is_worth_storing(
    engine: Engine, store_url: str
) -> None:
    class NoLeases(Wrapper):
        """Fails the test when it is asked for leases."""

        @property
        def leases(self) -> None:
            raise AssertionError("a warm question asked for leases")

    with open_store(store_url) as opened:
        with Runtime(engine, opened) as runtime:
            runtime.prefill([DOCUMENT, question(1)])
        store = StateStore(NoLeases(opened.backend))
        with Runtime(engine, store) as runtime:
            assert runtime.prefill([DOCUMENT, question(2)]).computed_tokens == QUESTION
        assert store.metrics.value("lookups_total", outcome="hit") == 1
        assert store.metrics.value("lookups_total", outcome="miss") == 0


def test_several_questions_without_a_store_read_the_document_once(engine: Engine) -> None:
    text = "Some text that is read once, and no store to keep it. " * 4
    with Runtime(engine, None) as runtime:
        together = list(runtime.ask(text, ["one?", "two?", "three?"], max_tokens=2))
        alone = [next(runtime.ask(text, [q], max_tokens=2)) for q in ("one?", "two?", "three?")]
    assert [answer.cached_tokens for answer in together] == [0, len(text), len(text)]
    assert [digest(a.prefill) for a in together] == [digest(a.prefill) for a in alone]
