"""`rwkv-runtime explain`: why a document and a question would hit or miss."""

from __future__ import annotations

from pathlib import Path

import click

from rwkv_runtime.commands.options import Opening, json_option, read_text, runtime_options
from rwkv_runtime.template import question_segment
from statestore.cli.commands.explain import Outlook


@click.command()
@runtime_options
@click.argument("documents", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--question", help="Asked behind the documents, as `ask` does.")
@json_option
def explain(
    opening: Opening, documents: tuple[Path, ...], question: str | None, as_json: bool
) -> None:
    """Say why DOCUMENTS, each a segment, would hit or miss, boundary by boundary.

    Computes and stores nothing. `statestore explain` takes token ids, and needs no weights.

    \b
    Example:
      rwkv-runtime explain --model rwkv7-0.1b.pth --store ./states report.txt
    """
    texts = [read_text(path) for path in documents]
    if question is not None:
        texts.append(question_segment(question))
    with opening.runtime() as runtime:
        session = runtime.session
        assert runtime.store is not None, "an opening has one"
        prompt = session.plan([runtime.tokenizer.encode(text) for text in texts])
        outlook = Outlook.of(runtime.store, session.identity, prompt)
    outlook.emit(as_json=as_json)
