"""`rwkv-runtime demo`: the whole idea on one page, with the model that ships with the package.

Every question is asked by a process of its own, so that what makes the later ones fast can only be
the store on disk. This process loads no model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from platformdirs import user_cache_path

from rwkv_runtime.commands.options import json_option
from rwkv_runtime.demo import MODEL_PATH
from rwkv_runtime.demo.corpus import Document, Question, demo_document
from statestore.cli.render import emit_json, emit_table
from statestore.errors import StateStoreError

Row = dict[str, Any]

#: How many questions get a process of their own; each loads PyTorch and the model first.
ALONE = 8


@click.command()
@click.option(
    "--store",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the states go; by default among the user's caches.",
)
@click.option("--fresh", is_flag=True, help="Empty the demo's store first.")
@json_option
def demo(directory: Path | None, fresh: bool, as_json: bool) -> None:
    """Read a document once, then answer questions about it from new processes.

    Running it again starts warm; --fresh starts over.

    \b
    Example:
      rwkv-runtime demo --fresh
    """
    directory = directory or user_cache_path("rwkv-statestore") / "demo"
    if fresh:
        _empty(directory)
    document = demo_document()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "document.txt")
        path.write_text(document.text, encoding="utf-8")
        if not as_json:
            _introduce(document, directory)
        alone = document.questions[:: max(1, len(document.questions) // ALONE)][:ALONE]
        questions = [_asked(path, directory, [q], not as_json)[0] for q in alone]
        restart = _asked(path, directory, document.questions, not as_json)
        afresh = _asked(path, Path(scratch, "empty"), alone[:1], not as_json)
    again = {row["question"]: row for row in restart}
    pairs = [(afresh[0], questions[0]), *((row, again[row["question"]]) for row in questions)]
    equal = all(_same_bits(one, other) for one, other in pairs)
    if as_json:
        emit_json(
            {
                "questions": questions,
                "restart": restart,
                "fresh": afresh,
                "bit_for_bit": equal,
                "store": str(directory),
            }
        )
    else:
        _report(questions, restart, afresh[0], equal)
    if not equal:
        raise StateStoreError("an answer from the store differs from the fresh one")


def _asked(document: Path, store: Path, questions: Sequence[Question], visible: bool) -> list[Row]:
    """Ask in a new process; a row for each question."""
    command = [sys.executable, "-m", "rwkv_runtime", "ask", "--json"]
    command += ["--model", str(MODEL_PATH), "--store", str(store), "--document", str(document)]
    for question in questions:
        command += ["--question", question.text]
    with _status(f"a new process: {questions[0].text}", visible):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise StateStoreError(f"the asking process failed:\n{done.stderr.strip()}")
    rows: list[Row] = json.loads(done.stdout)["questions"]
    return [{**row, "expected": q.answer} for row, q in zip(rows, questions, strict=True)]


def _same_bits(one: Row, other: Row) -> bool:
    return all(one[field] == other[field] for field in ("answer", "logits_sha256"))


def _introduce(document: Document, directory: Path) -> None:
    click.secho("The document", bold=True)
    click.echo(click.wrap_text(document.text, 100, preserve_paragraphs=True))
    click.echo(f"\nStates are kept in {directory}\n")


def _report(questions: Sequence[Row], restart: Sequence[Row], afresh: Row, equal: bool) -> None:
    cold_s = afresh["ttft_s"]
    columns = [
        "question",
        "answer",
        "expected",
        ">from store",
        ">computed",
        ">first token",
        ">faster",
    ]
    rows = [_cells(row, cold_s) for row in questions]
    emit_table(columns, rows, "Each question in a process of its own")
    click.echo()
    rows = [_cells(row, cold_s) for row in restart]
    emit_table(columns, rows, "After a restart, all in one process")
    click.echo()
    right = sum(row["answer"] == row["expected"] for row in (*questions, *restart))
    click.echo(f"{right} of {len(questions) + len(restart)} answers are right.")
    tokens = afresh["computed_tokens"]
    click.echo(
        f"Reading all {tokens} tokens afresh takes {cold_s * 1e3:.0f} ms to the first token."
    )
    if equal:
        click.secho(
            "From the store or afresh, the answers and their logits are the same, bit for bit.",
            fg="green",
        )


def _cells(row: Row, cold_s: float) -> list[str]:
    right = row["answer"] == row["expected"]
    mark = click.style("✓", fg="green") if right else click.style("✗", fg="red")
    return [
        row["question"],
        f"{row['answer']} {mark}",
        row["expected"],
        str(row["cached_tokens"]),
        str(row["computed_tokens"]),
        f"{row['ttft_s'] * 1e3:.1f} ms",
        f"{cold_s / row['ttft_s']:.0f}x",
    ]


def _empty(directory: Path) -> None:
    """Remove the demo's store, and nothing else that lies beside it."""
    if (directory / "catalog.sqlite3").is_file():
        shutil.rmtree(directory / "blobs", ignore_errors=True)
        for path in directory.glob("catalog.sqlite3*"):
            path.unlink(missing_ok=True)


@contextmanager
def _status(text: str, visible: bool) -> Iterator[None]:
    from rich.console import Console

    console = Console(stderr=True)
    if not visible or not console.is_terminal:
        yield
        return
    with console.status(text):
        yield
