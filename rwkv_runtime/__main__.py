"""The `rwkv-runtime` command."""

from __future__ import annotations

from pathlib import Path

import click

from rwkv_runtime.commands.ask import ask
from rwkv_runtime.commands.chat import chat
from rwkv_runtime.commands.demo import demo
from rwkv_runtime.commands.explain import explain
from rwkv_runtime.commands.fingerprint import fingerprint
from rwkv_runtime.commands.generate import generate
from rwkv_runtime.commands.options import defaults_of
from rwkv_runtime.commands.serve import serve
from rwkv_runtime.commands.warm import warm
from statestore.cli.group import ErrorGroup
from statestore.cli.options import CONFIG, config_option
from statestore.config import load


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.version_option(package_name="rwkv-statestore", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, file: Path | None) -> None:
    """Answer from documents that were read once.

    Options may be set in a file and in the environment too: see `statestore config --help`.

    \b
    Begin with:
      rwkv-runtime demo
    """
    settings = ctx.meta[CONFIG] = load(file)
    ctx.default_map = dict.fromkeys(main.commands, defaults_of(settings))


for command in (demo, ask, chat, generate, warm, explain, fingerprint, serve):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="rwkv-runtime")
