"""`kill -9` at random moments of `ask` and `warm`, over one store: every entry verifies, answers
are right.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rwkv_runtime.demo import MODEL_PATH
from rwkv_runtime.demo.corpus import demo_document
from statestore import open_store
from tests.runtime.workers.killed import run

KILLS = int(os.environ.get("TEST_KILLS", "40"))
DOCUMENT = demo_document()


@pytest.fixture(scope="module")
def forks() -> Any:
    """Starts processes that have loaded the command already: what is killed is work."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.runtime.workers.killed"])
    return context


def arguments(command: str, store: Path, document: Path) -> list[str]:
    common = ["--model", str(MODEL_PATH), "--store", str(store), "--threads", "1"]
    if command == "warm":
        return ["warm", *common, str(document)]
    question = DOCUMENT.questions[0].text
    return ["ask", *common, "--document", str(document), "--question", question]


def seconds_of(process: Any) -> float:
    began = time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def write_documents(directory: Path, count: int) -> list[Path]:
    """The demo's document, each time behind another first line, so that each leaves states of its
    own.
    """
    paths = [directory / f"document-{number}.txt" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_text(f"Note {number}. {DOCUMENT.text}", encoding="utf-8")
    return paths


def test_kills_at_random_moments_leave_a_sound_store(forks: Any, tmp_path: Path) -> None:
    source = random.Random(11)
    store = tmp_path / "store"
    documents = write_documents(tmp_path, 12)
    whole_s = {
        command: seconds_of(forks.Process(target=run, args=(arguments(command, store, path),)))
        for command, path in zip(("warm", "ask"), documents, strict=False)
    }
    interrupted = 0
    for _ in range(KILLS):
        command = source.choice(("ask", "warm"))
        process = forks.Process(
            target=run, args=(arguments(command, store, source.choice(documents)),)
        )
        process.start()
        process.join(source.uniform(0, whole_s[command]))
        process.kill()
        process.join()
        interrupted += process.exitcode != 0
    assert interrupted > KILLS / 4
    assert_sound(store)
    assert_right_answers(store, tmp_path, documents)


def assert_sound(directory: Path) -> None:
    with open_store(directory.as_uri()) as store:
        entries = list(store.list())
        assert entries
        assert [problem for entry in entries if (problem := store.check(entry))] == []
        store.sweep(grace_s=0)
        left = {path.name for path in (directory / "blobs").rglob("*") if path.is_file()}
        assert left == {entry.blob for entry in store.list()}


def assert_right_answers(store: Path, scratch: Path, documents: list[Path]) -> None:
    """Through the store, and bit for bit those of an empty one."""
    for document in documents[:2]:
        warm, fresh = (
            asked([*arguments("ask", place, document), "--json"])
            for place in (store, scratch / f"fresh-{document.stem}")
        )
        assert warm["answer"] == DOCUMENT.questions[0].answer
        assert warm["logits_sha256"] == fresh["logits_sha256"]
        assert fresh["cached_tokens"] == 0


def asked(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "rwkv_runtime", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    row: dict[str, Any] = json.loads(done.stdout)["questions"][0]
    return row
