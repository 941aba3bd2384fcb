"""`rwkv-runtime warm`: read documents now, so that later questions find their states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rwkv_runtime.commands.options import Opening, json_option, read_text, runtime_options
from rwkv_runtime.commands.progress import progress_bar
from statestore.cli.render import emit_json
from statestore.errors import FullError
from statestore.explain import Why

if TYPE_CHECKING:
    from rwkv_runtime import Prefill, Runtime
    from statestore.keys import Tokens

#: A prompt's end that later prompts begin from; without an output it only serves longer ones, as
#: questions about a document are.
KEPT = (Why.FOUND, Why.NO_OUTPUT)


@click.command()
@runtime_options
@click.argument("documents", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def warm(
    opening: Opening,
    documents: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Read DOCUMENTS and store their states. What is stored already is not read again.

    Ends with 4 if the store did not keep them all: it is full, or out of order.

    \b
    Example:
      rwkv-runtime warm --model rwkv7-0.1b.pth --store ./states docs/*.txt
    """
    texts = {path: read_text(path) for path in documents}
    for path, text in texts.items():
        if not text:
            raise click.BadParameter(f"{path}: is empty")
    rows = []
    with opening.runtime() as runtime:
        for path, text in texts.items():
            with progress_bar(path.name) as report:
                tokens = runtime.tokenizer.encode(text)
                prefill = runtime.warm([tokens], progress=report)
            rows.append(_row(path, prefill, kept=_kept(runtime, tokens)))
            if not as_json:
                click.echo(_line(path, prefill))
    if as_json:
        emit_json({"documents": rows})
    _refuse_lost([str(row["document"]) for row in rows if not row["stored"]])


def _kept(runtime: Runtime, tokens: Tokens) -> bool:
    """Whether the store has a document's end now; a put alone only says that it was handed over."""
    runtime.flush()
    if runtime.store is None:
        return False
    runtime.store.flush()
    return runtime.explain([tokens])[-1].why in KEPT


def _row(path: Path, prefill: Prefill, *, kept: bool) -> dict[str, object]:
    return {
        "document": str(path),
        "cached_tokens": prefill.cached_tokens,
        "computed_tokens": prefill.computed_tokens,
        "seconds": prefill.seconds,
        "stored": kept,
    }


def _line(path: Path, prefill: Prefill) -> str:
    return (
        f"{path}: {prefill.cached_tokens} tokens were stored, "
        f"{prefill.computed_tokens} computed in {prefill.seconds:.2f} s"
    )


def _refuse_lost(lost: Sequence[str]) -> None:
    if lost:
        raise FullError(
            f"read, but not kept by the store: {', '.join(lost)}; "
            "`statestore stats` shows what it holds, `statestore doctor` what ails it"
        )
