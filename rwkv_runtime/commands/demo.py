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
from statestore.cli.render import emit_json
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
        afresh = _asked(path, Path(scratch, "empty"), alone[:1], not as_json)
        show = _silence if as_json else _Lines(document.questions, afresh[0])
        show("Each question in a process of its own, over that store", ())
        questions: list[Row] = []
        for question in alone:
            questions += _asked(path, directory, [question], not as_json)
            show("", questions[-1:])
        restart = _asked(path, directory, document.questions, not as_json)
        show("After a restart, all in one process", restart)
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
        _conclude([*questions, *restart], equal)
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
    click.echo(click.wrap_text(document.text, 80, preserve_paragraphs=True))
    click.echo(f"\nStates are kept in {directory}\n")


def _silence(title: str, rows: Sequence[Row]) -> None:
    """What is shown where JSON is printed at the end."""


class _Lines:
    """A line for each answer as it comes, beside the same question on a document read afresh."""

    def __init__(self, questions: Sequence[Question], afresh: Row) -> None:
        self._question = max(len(question.text) for question in questions)
        self._answer = max(len(question.answer) for question in questions) + 2
        self._cold_s = afresh["ttft_s"]
        click.echo(
            f"Without a store {afresh['computed_tokens']} tokens are read, and an answer begins "
            f"after {_ms(self._cold_s)}."
        )

    def __call__(self, title: str, rows: Sequence[Row]) -> None:
        """Print `rows`, below a title and the columns' names where there is a title."""
        if title:
            click.secho(f"\n{title}", bold=True)
            names = ("question", "answer", "stored", "read", "first token", "faster")
            click.secho(self._line(*names), dim=True)
        for row in rows:
            mark = "✓" if row["answer"] == row["expected"] else "✗"
            cells = (f"{row['answer']} {mark}", row["cached_tokens"], row["computed_tokens"])
            faster = f"{self._cold_s / row['ttft_s']:.0f}x"
            click.echo(self._line(row["question"], *cells, _ms(row["ttft_s"]), faster))

    def _line(self, question: str, answer: str, *cells: object) -> str:
        cached, computed, first, faster = cells
        return (
            f"{question:<{self._question}} {answer:<{self._answer}} "
            f"{cached:>6} {computed:>4} {first:>11} {faster:>6}"
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f} ms"


def _conclude(rows: Sequence[Row], equal: bool) -> None:
    right = sum(row["answer"] == row["expected"] for row in rows)
    click.echo(f"\n{right} of {len(rows)} answers are right.")
    if equal:
        click.secho(
            "From the store or afresh, the answers and their logits are the same, bit for bit.",
            fg="green",
        )


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
