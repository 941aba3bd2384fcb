"""`rwkv-runtime ask`: questions about a document, each from the document's stored state."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkv_runtime.commands.cost import show_cost
from rwkv_runtime.commands.options import Opening, json_option, read_text, runtime_options
from rwkv_runtime.commands.progress import progress_bar
from statestore.cli.render import emit_json

if TYPE_CHECKING:
    from rwkv_runtime import Answer


@click.command()
@runtime_options
@click.option(
    "--document",
    required=True,
    type=click.Path(path_type=Path),
    help="A UTF-8 text file; - reads standard input.",
)
@click.option("--question", "questions", required=True, multiple=True, help="May be repeated.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Per answer."
)
@json_option
def ask(
    opening: Opening,
    document: Path,
    questions: tuple[str, ...],
    max_tokens: int,
    as_json: bool,
) -> None:
    """Answer questions about a document.

    The first time, the document is read and its state is stored; from then on, in any process, a
    question costs the question alone.

    \b
    Example:
      rwkv-runtime ask --model rwkv7-0.1b.pth --store ./states \\
          --document report.txt --question "Who wrote it?" --question "When?"
    """
    text = read_text(document)
    if not text:
        raise click.BadParameter(f"{document}: is empty")
    if not all(question.strip() for question in questions):
        raise click.BadParameter("a question is empty: say what to ask")
    with opening.runtime() as runtime:
        rows = []  # and not the answers: each holds a state
        with progress_bar("reading") as report:
            for answer in runtime.ask(text, questions, max_tokens=max_tokens, progress=report):
                rows.append(record(answer))
                if not as_json:
                    _print(answer)
    if as_json:
        emit_json({"model": opening.model.path.name, "questions": rows})


def record(answer: Answer) -> dict[str, object]:
    """An answer for JSON. `logits_sha256` is of the prompt's last logits: equal bits, equal
    digest.
    """
    logits = answer.prefill.logits.cpu().numpy().astype("<f4")
    return {
        "question": answer.question,
        "answer": answer.answer,
        "cached_tokens": answer.cached_tokens,
        "computed_tokens": answer.computed_tokens,
        "tokenise_s": answer.tokenise_s,
        "ttft_s": answer.ttft_s,
        "total_s": answer.total_s,
        "logits_sha256": hashlib.sha256(logits.tobytes()).hexdigest(),
    }


def _print(answer: Answer) -> None:
    click.secho(answer.question, bold=True)
    click.echo(answer.answer)
    show_cost(answer.cached_tokens, answer.computed_tokens, answer.ttft_s)
