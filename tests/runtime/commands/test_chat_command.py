"""`rwkv-runtime chat` through real processes: lines from a pipe, and a real terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.workers.commanded import run
from tests.runtime.workers.terminals import WAIT_S, terminal

SYSTEM = "A text of some length, to begin with. " * 10


@pytest.fixture
def chat(model_path: Path, tmp_path: Path) -> list[str]:
    common = ["--model", str(model_path), "--store", str(tmp_path / "states")]
    return ["chat", *common, "--system", SYSTEM]


def replies(*arguments: str, stdin: str) -> list[dict[str, Any]]:
    done = run(*arguments, "--json", "--max-tokens", "8", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_line_is_a_message_and_another_process_goes_on_from_the_store(
    chat: list[str],
) -> None:
    first = replies(*chat, stdin="Hello there\n\n  \nAnd now?\n")
    again = replies(*chat, stdin="Hello there\nAnd now?\n")
    assert [row["message"] for row in first] == ["Hello there", "And now?"]
    assert [row["reply"] for row in again] == [row["reply"] for row in first]
    assert first[0]["cached_tokens"] == 0
    assert first[1]["cached_tokens"] >= len(SYSTEM)
    assert all(row["cached_tokens"] >= len(SYSTEM) for row in again)
    sampled = replies(*chat, "--temperature", "1", "--seed", "3", stdin="Hello there\n")
    assert sampled[0]["reply"] != first[0]["reply"]


def test_a_document_is_talked_about(chat: list[str], tmp_path: Path) -> None:
    (tmp_path / "document.txt").write_text("Ada is in the hall. " * 30, encoding="utf-8")
    document = ["--document", str(tmp_path / "document.txt")]
    first = replies(*chat, *document, stdin="Where is Ada?\n")
    warmed = run("warm", *chat[1:5], document[1])
    assert "600 tokens were stored, 0 computed" in warmed.stdout  # its own segment, as it is
    assert first[0]["computed_tokens"] > 600 + len(SYSTEM)


def test_people_see_the_reply_and_what_it_cost(chat: list[str]) -> None:
    done = run(*chat, "--max-tokens", "8", stdin="Hello there\n")
    assert done.returncode == 0
    assert "0 tokens from the store" in done.stdout
    assert "first token after" in done.stdout


def test_mistakes_are_named(chat: list[str]) -> None:
    unknown = run(*chat, "--template", "chatml", stdin="Hello\n")
    assert unknown.returncode == 2
    assert "auto" in unknown.stderr
    half = run(*chat, "--max-tokens", "2", stdin="Hello\n\udcff\n")
    assert half.returncode == 2
    assert "line 2 is not UTF-8" in half.stderr


def test_ctrl_c_stops_the_reply_only(chat: list[str]) -> None:
    endless = ["--template", "world", "--max-tokens", "100000000", "--temperature", "1"]
    with terminal(*chat, *endless) as (running, person):
        person.until(b"> ")
        for _ in range(2):
            person.type(b"Hello there\n")
            person.until(b"Hello there\r\n.")  # it speaks, or shows that it reads
            person.type(b"\x03")
            person.until(rb" \.\.\.\r\n")
            person.until(b"> ")
        person.type(b"\xff\n")
        person.until(b"no tokens; decode the input as UTF-8")
        person.until(b"> ")
        person.type(b"\x04")
        assert running.wait(WAIT_S) == 0
