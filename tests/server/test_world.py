"""A model with the World vocabulary, whose random weights write anything: its texts are no sense,
and have every kind of token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rwkv_runtime.testing import small_architecture, write_random_weights
from tests.server.servers import Server, serving, workers_of

DOCUMENT = "Ein Dokument, das einmal gelesen wird: Äpfel, 日本語, naïve café. " * 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, for everybody who reaches it."""
    directory = tmp_path_factory.mktemp("world")
    weights = directory / "world.safetensors"
    write_random_weights(weights, small_architecture(vocabulary=65536), seed=1)
    store = (directory / "states").as_uri()
    with serving(str(weights), "--workers", "1", "--host", "0.0.0.0", store=store) as running:
        yield running


def text_of(stream: Any) -> str:
    pieces = (chunk.choices[0].delta.content for chunk in stream if chunk.choices)
    return "".join(piece or "" for piece in pieces)


@pytest.mark.parametrize("seed", range(2))
def test_a_stream_splits_no_character(world: Server, seed: int) -> None:
    """Bytes that are no character are U+FFFD, in one piece or in many."""
    ask: dict[str, Any] = {
        "model": "world",
        "messages": [{"role": "user", "content": "Äpfel?"}],
        "max_tokens": 40,
        "temperature": 1,
        "seed": seed,
    }
    client = world.client()
    whole = client.chat.completions.create(**ask).choices[0].message.content
    assert any(ord(character) > 127 for character in whole)
    assert text_of(client.chat.completions.create(**ask, stream=True)) == whole


def test_a_chat_about_two_documents(world: Server) -> None:
    ids = [
        world.request("PUT", "/v1/documents", json={"text": text}).json()["id"]
        for text in (DOCUMENT, f"Another. {DOCUMENT}")
    ]
    client = world.client()
    messages: list[Any] = [{"role": "user", "content": "What does it say?\n\nAll of it."}]
    before = 0
    for turn in range(3):
        answer = client.chat.completions.create(
            model="world",
            messages=messages,
            max_tokens=20,
            seed=turn,
            extra_body={"documents": ids},
        )
        cached = answer.usage.prompt_tokens_details.cached_tokens
        if turn:
            assert cached >= before - 20
        before = answer.usage.prompt_tokens
        messages += [
            {"role": "assistant", "content": answer.choices[0].message.content},
            {"role": "user", "content": "Go on."},
        ]


def test_who_lets_everybody_in_is_warned(world: Server) -> None:
    assert "everybody who reaches" in world.log
    assert world.request("GET", "/healthz", headers={"Host": "a.example"}).status_code == 200


def test_a_worker_shares_the_vocabulary(world: Server) -> None:
    """Read by each for itself it would take 230 MB more."""
    assert world.client().completions.create(model="world", prompt="Äpfel", max_tokens=2).choices
    (worker,) = workers_of(world)
    assert private_bytes(worker) < 150e6


def private_bytes(process: int) -> int:
    """Memory that no other process has."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text("ascii")
    return sum(int(kib) << 10 for kib in re.findall(r"^Private_\w+: +(\d+)", rollup, re.MULTILINE))
