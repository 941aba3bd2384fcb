"""The `rwkv-runtime` command."""

from __future__ import annotations

import click

from rwkv_runtime.commands.ask import ask
from rwkv_runtime.commands.demo import demo
from rwkv_runtime.commands.fingerprint import fingerprint
from rwkv_runtime.commands.generate import generate
from rwkv_runtime.commands.warm import warm
from statestore.cli.group import ErrorGroup


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rwkv-statestore", message="%(prog)s %(version)s")
def main() -> None:
    """Answer from documents that were read once.

    \b
    Begin with:
      rwkv-runtime demo
    """


for command in (demo, ask, generate, warm, fingerprint):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="rwkv-runtime")
