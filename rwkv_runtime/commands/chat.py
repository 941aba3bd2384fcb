"""`rwkv-runtime chat`: a conversation, line by line."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

import rwkv_runtime
from rwkv_runtime.chat import NAMES, Message, template
from rwkv_runtime.commands.cost import show_cost
from rwkv_runtime.commands.options import Opening, json_option, read_text, runtime_options
from rwkv_runtime.commands.progress import progress_bar
from rwkv_runtime.commands.sampling import sampling_options
from rwkv_runtime.errors import TokenizerError

if TYPE_CHECKING:
    from rwkv_runtime import Conversation, Sampling


@click.command()
@runtime_options
@click.option("--document", type=click.Path(path_type=Path), help="A text file to talk about.")
@click.option("--system", default="", help="What the model is told before the conversation.")
@click.option(
    "--template",
    "written",
    type=click.Choice(NAMES),
    default="auto",
    show_default=True,
    help="How messages are written; auto goes by the tokenizer.",
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True, help="Per reply."
)
@sampling_options
@json_option
def chat(
    opening: Opening,
    document: Path | None,
    system: str,
    written: str,
    max_tokens: int,
    sampling: Sampling,
    as_json: bool,
) -> None:
    """Talk with a model. Each line is a message, from a terminal or from standard input.

    What was said is found in the store on the next turn, and by another process that begins with
    the same words; only the reply is read again. Ctrl-C stops a reply, Ctrl-D ends the
    conversation. With --json each reply is one line.

    \b
    Example:
      rwkv-runtime chat --model rwkv7-g1-1.5b.pth --dtype bf16 \\
          --system "Answer in one sentence." --temperature 1 --top-p 0.5
    """
    said = [read_text(document)] if document is not None else []
    before = [Message("system", text) for text in [*said, system] if text]
    with opening.runtime() as runtime:
        conversation = rwkv_runtime.Conversation(
            runtime,
            before,
            chat=template(written, runtime.tokenizer),
            max_tokens=max_tokens,
            sampling=sampling,
        )
        for line in _lines():
            if not (as_json or sys.stdin.isatty()):
                click.secho(line, bold=True)
            _turn(conversation, line, as_json)


def _turn(conversation: Conversation, line: str, as_json: bool) -> None:
    stopped = False
    try:
        with progress_bar("reading") as report:
            reply = conversation.say(line, progress=report)
            first = next(reply, "")
        with closing(reply):
            for piece in _pieces(first, reply):
                if not as_json:
                    click.echo(piece, nl=False)
    except KeyboardInterrupt:
        stopped = True
    except TokenizerError as error:
        if not sys.stdin.isatty():
            raise
        click.secho(str(error), fg="red")  # a slip of the keys ends no conversation
        return
    if as_json:
        _emit(conversation, line, stopped)
        return
    click.echo(" ..." if stopped else "")
    if conversation.cost is not None:
        show_cost(**asdict(conversation.cost))


def _pieces(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _emit(conversation: Conversation, line: str, stopped: bool) -> None:
    cost = conversation.cost
    reply = "" if cost is None else conversation.messages[-1].content
    row = {"message": line, "reply": reply, "stopped": stopped}
    click.echo(json.dumps(row | (asdict(cost) if cost else {})))


def _lines() -> Iterator[str]:
    """What is said, without empty lines."""
    lines = _typed() if sys.stdin.isatty() else _piped()
    return (line for text in lines if (line := text.strip()))


def _typed() -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited and called back
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # the tokenizer says what is wrong
    with suppress(EOFError):
        while True:
            yield input("> ")
    click.echo()


def _piped() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise click.BadParameter(
                f"standard input: line {number} is not UTF-8; convert it first"
            ) from error
