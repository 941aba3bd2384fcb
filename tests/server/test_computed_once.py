"""One document that nobody has read, asked about through every worker at the same moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeAlias

import httpx
import pytest

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.demo import MODEL_PATH
from rwkv_runtime.demo.corpus import unseen_document
from statestore.keys import StateKey
from statestore.settings import open_store
from statestore.store import StateStore
from tests.places.redis_servers import running
from tests.server.servers import Server, serving, wait_until

WORKERS = 3
EACH = 2  # questions through each worker

Usage: TypeAlias = dict[str, Any]
Asked: TypeAlias = list[tuple[int, "Future[Usage]"]]  # by worker


@pytest.fixture(scope="module", params=["file", "redis"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "file":
        yield (tmp_path_factory.mktemp("once") / "states").as_uri()
        return
    with running() as redis:
        yield redis.url


@pytest.fixture(scope="module")
def crew(store: str) -> Iterator[Server]:
    """Workers over one store."""
    with serving("--workers", str(WORKERS), store=store) as server:
        yield server


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    """What the workers have, for the keys of a text."""
    with Runtime(load_engine(MODEL_PATH), None) as opened:
        yield opened


def written(numbers: Sequence[int]) -> str:
    """A text that no other test asks about. A rest too short for a chunk would be read anew with
    each question, so it has none.
    """
    text = " ".join(unseen_document(number, facts=40).text for number in numbers)
    return text[: len(text) - len(text) % 256]


def ask(clients: dict[int, list[httpx.Client]], text: str, pool: ThreadPoolExecutor) -> Asked:
    """Another question over each connection, all sent at once."""
    start = Barrier(WORKERS * EACH)

    def one(client: httpx.Client, number: int) -> Usage:
        messages = [
            {"role": "system", "content": text},
            {"role": "user", "content": f"In which city is number {number} at home?"},
        ]
        body = {"messages": messages, "temperature": 0, "max_tokens": 4}
        start.wait(60)
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["usage"])

    lines = [(pid, client) for pid, mine in clients.items() for client in mine]
    return [(pid, pool.submit(one, client, i)) for i, (pid, client) in enumerate(lines)]


def computed(usage: Usage) -> int:
    return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])


def test_it_is_computed_once(crew: Server) -> None:
    """And each question by itself."""
    text = written([1])
    tokens = len(text.encode())
    with crew.connections(WORKERS, EACH) as clients, ThreadPoolExecutor(WORKERS * EACH) as pool:
        usages = [answer.result(60) for _, answer in ask(clients, text, pool)]
    questions = sum(usage["prompt_tokens"] - tokens for usage in usages)
    assert sum(map(computed, usages)) == tokens + questions


def test_whoever_computes_it_is_killed(crew: Server, runtime: Runtime) -> None:
    """Another goes on, alone; and no answer fails that was not the dead one's."""
    text = written(range(2, 10))
    tokens = len(text.encode())
    boundaries = runtime.session.plan([list(text.encode())]).boundaries
    with (
        open_store(crew.store) as store,
        crew.connections(WORKERS, EACH) as clients,
        ThreadPoolExecutor(WORKERS * EACH) as pool,
    ):
        asked = ask(clients, text, pool)
        leader = leading(store, [boundary.key for boundary in boundaries])
        assert leader in clients
        os.kill(leader, signal.SIGKILL)
        for pid, answer in asked:
            if pid == leader:
                with pytest.raises(httpx.TransportError):
                    answer.result(60)
        usages = [answer.result(60) for pid, answer in asked if pid != leader]
    questions = sum(usage["prompt_tokens"] - tokens for usage in usages)
    assert questions < sum(map(computed, usages)) <= tokens + questions
    with crew.connections(WORKERS, EACH) as clients, ThreadPoolExecutor(WORKERS * EACH) as pool:
        assert leader not in clients
        again = [answer.result(60) for _, answer in ask(clients, text, pool)]
    assert all(computed(usage) <= usage["prompt_tokens"] - tokens for usage in again)


def leading(store: StateStore, keys: Sequence[StateKey]) -> int:
    """The worker that computes one of `keys` at this moment."""
    leases, found = store.leases, []
    assert leases is not None

    def somebody() -> bool:
        held = (leases.wait(key, 0) for key in keys)
        found.extend(lease.owner for lease in held if lease is not None and lease.outcome is None)
        return bool(found)

    wait_until(somebody, "a lease")
    return int(found[0].split("/")[1])
