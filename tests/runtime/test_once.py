"""Many who want one document compute it once: threads, processes, the death of whoever computes."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from rwkv_runtime import Prefill, Runtime, load_engine
from rwkv_runtime.engines import Engine
from statestore import StateStore, open_store
from statestore.backends.base import Backend, Blob
from statestore.backends.wrapper import Wrapper
from statestore.entry import Entry
from tests.runtime.crowd import DOCUMENT, RULE, STOP, answers, crowd, go, half_way, question
from tests.statestore.postgres_servers import PostgresPlace
from tests.statestore.redis_servers import running

SIZE = 16
#: What is late on a busy machine is not dead: deadlines have tests of their own.
PATIENT = "find_ms=30000&fetch_ms=30000"
QUESTION = len(question(0))


@pytest.fixture(params=["file", "redis", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new store of each kind, with a real server where it has one."""
    if request.param == "file":
        yield (tmp_path / "store").as_uri()
    elif request.param == "redis":
        with running() as server:
            yield f"{server.url}?{PATIENT}"
    else:
        place = PostgresPlace(tmp_path / "place", timeout_s="30")
        yield f"{place.url}&{PATIENT}"
        place.drop()


@pytest.fixture(scope="module")
def expected(model_path: Path) -> dict[int, str]:
    """Digests of the answers computed afresh."""
    engine = load_engine(model_path, threads=1, rule=RULE)
    with Runtime(engine, None) as runtime:
        read = runtime.prefill([DOCUMENT])
        assert read.computed_tokens == len(DOCUMENT)

        @cache
        def logits(number: int) -> str:
            output, _ = engine.prefill(as_tensor(question(number)), read.state)
            return hashlib.sha256(engine.logits(output).numpy().tobytes()).hexdigest()

        return {number: logits(number) for number in range(SIZE)}


def as_tensor(tokens: list[int]) -> object:
    import torch

    return torch.tensor(tokens)


def test_sixteen_processes_read_one_document_once(
    url: str, model_path: Path, expected: dict[int, str]
) -> None:
    """With different questions, and clocks that are two hours apart."""
    with crowd(model_path, url, SIZE, skewed=True) as members:
        go(members)
        assert answers(members) == expected
        computed = sorted(member.computed for member in members)
    assert computed == [QUESTION] * (SIZE - 1) + [len(DOCUMENT) + QUESTION]


def test_a_leader_killed_half_way_costs_what_it_had_not_stored(
    url: str, model_path: Path, expected: dict[int, str]
) -> None:
    """All tokens that anybody computed, against the document once and each question."""
    with crowd(model_path, url, SIZE) as members:
        go(members)
        leader = half_way(members)
        leader.kill()
        rest = [member for member in members if member is not leader]
        assert answers(rest) == {member.number: expected[member.number] for member in rest}
        total = sum(member.computed for member in members)
        assert leader.computed >= len(DOCUMENT) // 2
    assert total <= 1.1 * (len(DOCUMENT) + SIZE * QUESTION)


def test_a_leader_that_hangs_is_relieved_when_its_lease_lapses(
    url: str, model_path: Path, expected: dict[int, str]
) -> None:
    """It goes on later, and neither harms the others nor is harmed."""
    with crowd(model_path, url, 4, lease_s=4.0, skewed=True) as members:
        go(members)
        leader = half_way(members)
        assert leader.process.pid is not None
        os.kill(leader.process.pid, signal.SIGSTOP)
        rest = [member for member in members if member is not leader]
        assert answers(rest) == {member.number: expected[member.number] for member in rest}
        total = sum(member.computed for member in rest)
        assert total <= len(DOCUMENT) // 2 + 6 * STOP + len(rest) * QUESTION
        os.kill(leader.process.pid, signal.SIGCONT)
        leader.pipe.send("go on")
        assert answers([leader]) == {leader.number: expected[leader.number]}


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


def test_threads_read_one_document_once(
    engine: Engine, store_url: str, expected: dict[int, str]
) -> None:
    with open_store(store_url) as store, Runtime(engine, store) as runtime:
        with ThreadPoolExecutor(8) as pool:
            asked = [[DOCUMENT, question(number)] for number in range(8)]
            read = list(pool.map(runtime.prefill, asked))
        assert [digest(prefill) for prefill in read] == [expected[number] for number in range(8)]
    assert sum(prefill.computed_tokens for prefill in read) == len(DOCUMENT) + 8 * QUESTION


def test_what_is_still_being_written_is_taken_from_memory(
    engine: Engine, store_url: str, expected: dict[int, str]
) -> None:
    """The state goes from one request to the next before the store has it."""
    document = DOCUMENT[:64]
    with open_store(store_url) as opened:
        gated = Gated(opened.backend)
        with Runtime(engine, StateStore(gated)) as runtime:
            first = runtime.prefill([document, question(1)])
            second = runtime.prefill([document, question(2)])
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
    document = "Some text that is read once, and no store to keep it. " * 4
    with Runtime(engine, None) as runtime:
        together = list(runtime.ask(document, ["one?", "two?", "three?"], max_tokens=2))
        alone = [next(runtime.ask(document, [q], max_tokens=2)) for q in ("one?", "two?", "three?")]
    assert [answer.cached_tokens for answer in together] == [0, len(document), len(document)]
    assert [digest(a.prefill) for a in together] == [digest(a.prefill) for a in alone]
