"""`rwkv-runtime warm`: read documents now, so that later questions find their states."""

from __future__ import annotations

from pathlib import Path

import click

from rwkv_runtime.commands.options import Opening, json_option, read_text, runtime_options
from rwkv_runtime.commands.progress import progress_bar
from statestore.cli.render import emit_json


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
                prefill = runtime.warm([runtime.tokenizer.encode(text)], progress=report)
            runtime.flush()
            rows.append(
                {
                    "document": str(path),
                    "cached_tokens": prefill.cached_tokens,
                    "computed_tokens": prefill.computed_tokens,
                    "seconds": prefill.seconds,
                }
            )
            if not as_json:
                click.echo(
                    f"{path}: {prefill.cached_tokens} tokens were stored, "
                    f"{prefill.computed_tokens} computed in {prefill.seconds:.2f} s"
                )
    if as_json:
        emit_json({"documents": rows})
