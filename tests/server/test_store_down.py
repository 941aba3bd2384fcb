"""A store that goes and comes back, under a server that goes on."""

from __future__ import annotations

import os
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from rwkv_runtime.demo.corpus import Document
from statestore.tables import HEAD
from tests.places.redis_servers import running
from tests.server.servers import Server, serving, wait_until


def ask(server: Server, document: str, question: Any) -> tuple[int, str, int]:
    answer = server.request(
        "POST",
        "/v1/chat/completions",
        json={
            "documents": [document],
            "messages": [{"role": "user", "content": question.text}],
            "temperature": 0,
            "max_tokens": 32,
        },
    )
    if answer.status_code != 200:
        return answer.status_code, answer.json()["error"]["message"], 0
    body = answer.json()
    cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return 200, body["choices"][0]["message"]["content"], cached


def replace_worker(server: Server) -> None:
    """Kill the only worker, and wait for its successor."""
    old = server.request("GET", "/readyz").json()["worker"]
    os.kill(old, signal.SIGKILL)

    def another() -> bool:
        try:
            return bool(server.request("GET", "/readyz").json()["worker"] != old)
        except httpx.TransportError:
            return False

    wait_until(another, "another worker")


def test_requests_go_on_without_the_store(text: Document) -> None:
    tokens = len(text.text.encode())
    with running() as redis, serving("--workers", "1", store=redis.url) as server:
        put = server.request("PUT", "/v1/documents", json={"text": text.text}).json()
        assert put["computed"] == tokens
        questions = iter(text.questions)
        question = next(questions)
        assert ask(server, put["id"], question) == (200, question.answer, tokens)

        redis.pause()  # whoever watches the store waits; whoever asks does not wait for them
        with ThreadPoolExecutor(6) as watchers:
            watched = [watchers.submit(server.request, "GET", "/v1/store") for _ in range(6)]
            question = next(questions)
            assert ask(server, put["id"], question)[:2] == (200, question.answer)
            redis.go_on()
            assert {each.result().status_code for each in watched} <= {200, 503}

        redis.stop()
        question = next(questions)
        assert ask(server, put["id"], question) == (200, question.answer, 0)
        assert ask(server, f"doc-{'0' * 64}", question)[0] == 503
        refused = server.request("PUT", "/v1/documents", json={"text": "Another text. " * 40})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        ready = server.request("GET", "/readyz")
        assert ready.status_code == 200
        assert ready.json()["store"].startswith("down")

        replace_worker(server)  # its successor begins without the store
        answer = server.request("POST", "/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 200
        assert ask(server, put["id"], question)[0] == 503  # its tokens are nowhere

        redis.start()  # with nothing in it
        wait_until(
            lambda: server.request("GET", "/readyz").json()["store"] == "ok", "the store to be seen"
        )
        wait_until(
            lambda: server.request("PUT", "/v1/documents", json={"text": text.text}).is_success,
            "a put that is kept",
        )
        question = next(questions)
        assert ask(server, put["id"], question)[:2] == (200, question.answer)


def test_a_worker_begins_without_a_store_that_cannot_be_opened(
    text: Document, tmp_path: Path
) -> None:
    """Tables of a newer release, here, and then its own again."""

    def mark(revision: str) -> None:
        catalog = tmp_path / "store" / "catalog.sqlite3"
        with closing(sqlite3.connect(catalog, isolation_level=None)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))

    tokens = len(text.text.encode())
    question = text.questions[0]
    with serving("--workers", "1", store=(tmp_path / "store").as_uri()) as server:
        put = server.request("PUT", "/v1/documents", json={"text": text.text}).json()
        mark("9999")
        replace_worker(server)
        assert server.request("GET", "/readyz").json()["store"].startswith("down")
        answer = server.request("POST", "/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 200
        assert ask(server, put["id"], question)[0] == 503

        mark(HEAD)
        wait_until(
            lambda: server.request("GET", "/readyz").json()["store"] == "ok", "the store to be open"
        )
        assert ask(server, put["id"], question) == (200, question.answer, tokens)
        again = server.request("PUT", "/v1/documents", json={"text": text.text}).json()
        assert again["computed"] == 0
        assert "newer release" in server.log
