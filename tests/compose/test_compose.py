"""The stack of docker-compose.yml as a whole: built, started, asked, hurt, stopped and started.

Run by `make test-compose`; it needs a Docker engine, so `make test` leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from rwkv_runtime.demo.corpus import Document, unseen_document
from tests.compose.stack import Stack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack(f"statestore-test-{os.getpid()}")
    made.run("build", "server-a")  # its image is the others' too
    try:
        made.up()
        yield made
    finally:
        made.remove()


def document(seed: int) -> Document:
    return unseen_document(seed, facts=8)


def put(stack: Stack, server: str, text: str) -> Any:
    return stack.request("PUT", server, "/v1/documents", {"text": text, "name": "compose"})


def ask(stack: Stack, server: str, put_document: Any, question: str) -> tuple[str, int]:
    """The answer, and how many of the prompt's tokens were found."""
    answer = stack.request(
        "POST",
        server,
        "/v1/chat/completions",
        {
            "model": "demo",
            "documents": [put_document["id"]],
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 24,
            "temperature": 0,
        },
    )
    found = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["message"]["content"].strip(), found


def test_a_document_put_through_one_server_is_warm_on_the_other(stack: Stack) -> None:
    text = document(1)
    stored = put(stack, "server-a", text.text)
    for question in text.questions[:3]:
        answer, found = ask(stack, "server-b", stored, question.text)
        assert answer == question.answer
        assert found >= 0.9 * stored["tokens"]


def test_the_admin_sees_what_the_servers_stored(stack: Stack) -> None:
    put(stack, "server-a", document(2).text)
    assert stack.statestore("stats")["entries"] > 0
    assert stack.statestore("verify")["unsound"] == []


def test_a_killed_server_leaves_the_other_answering(stack: Stack) -> None:
    text = document(3)
    stored = put(stack, "server-a", text.text)
    stack.run("kill", "--signal", "SIGKILL", "server-a")
    try:
        answer, found = ask(stack, "server-b", stored, text.questions[0].text)
        assert answer == text.questions[0].answer
        assert found >= 0.9 * stored["tokens"]
        assert stack.statestore("verify")["unsound"] == []
    finally:
        stack.up()
    answer, found = ask(stack, "server-a", stored, text.questions[1].text)
    assert answer == text.questions[1].answer
    assert found >= 0.9 * stored["tokens"]


def test_redis_may_stop_and_come_back(stack: Stack) -> None:
    text = document(4)
    stored = put(stack, "server-a", text.text)
    stack.run("stop", "redis")
    try:
        for server in ("server-a", "server-b"):
            answer, found = ask(stack, server, stored, text.questions[0].text)
            assert answer == text.questions[0].answer
            assert found >= 0.9 * stored["tokens"]  # PostgreSQL has it
        late = put(stack, "server-a", document(5).text)
    finally:
        stack.run("start", "redis")
        stack.up()
    for server in ("server-a", "server-b"):
        answer, _ = ask(stack, server, late, document(5).questions[0].text)
        assert answer == document(5).questions[0].answer


def test_states_outlive_down_and_up(stack: Stack) -> None:
    text = document(6)
    stored = put(stack, "server-b", text.text)
    stack.run("down")
    stack.up()
    answer, found = ask(stack, "server-a", stored, text.questions[0].text)
    assert answer == text.questions[0].answer
    assert found >= 0.9 * stored["tokens"]
