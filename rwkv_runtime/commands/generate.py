"""`rwkv-runtime generate`: a text goes on, word by word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import rwkv_runtime
from rwkv_runtime.commands.options import Opening, json_option, read_text, runtime_options
from rwkv_runtime.commands.progress import progress_bar
from rwkv_runtime.commands.sampling import sampling_options
from statestore.cli.render import emit_json

if TYPE_CHECKING:
    from rwkv_runtime import Sampling


@click.command()
@runtime_options
@click.option("--document", type=click.Path(path_type=Path), help="Read before the prompt.")
@click.option("--prompt", default="", help="The text to go on with.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
@sampling_options
@click.option("--stop", multiple=True, help="Text that ends the answer; may be given again.")
@json_option
def generate(
    opening: Opening,
    document: Path | None,
    prompt: str,
    max_tokens: int,
    sampling: Sampling,
    stop: tuple[str, ...],
    as_json: bool,
) -> None:
    """Go on with a text. A document before the prompt is read once and its state is stored.

    \b
    Example:
      rwkv-runtime generate --model rwkv7-0.1b.pth --document story.txt \\
          --prompt "The next morning" --temperature 0.8 --seed 7
    """
    texts = [read_text(document)] if document is not None else []
    if not any([*texts, prompt]):
        raise click.UsageError("there is nothing to go on with: give --prompt or --document")
    with opening.runtime() as runtime:
        segments = [runtime.tokenizer.encode(text) for text in [*texts, prompt]]
        with progress_bar("reading") as report:
            prefill = runtime.prefill(segments, progress=report)
        pieces = []
        new = runtime.continue_from(
            prefill, max_tokens=max_tokens, sampling=sampling, stop=rwkv_runtime.Stop.at(*stop)
        )
        for piece in new:
            pieces.append(piece.text)
            if not as_json:
                click.echo(piece.text, nl=False)
    if as_json:
        emit_json(
            {
                "text": "".join(pieces),
                "tokens": len(pieces),
                "cached_tokens": prefill.cached_tokens,
                "computed_tokens": prefill.computed_tokens,
                "prefill_s": prefill.seconds,
            }
        )
    else:
        click.echo()
