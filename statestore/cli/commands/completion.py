"""`statestore completion`: the script that lets a shell complete commands, options and stores."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

PROGRAM: Final = "statestore"


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes this command's words in SHELL.

    \b
    Examples:
      statestore completion bash > ~/.local/share/bash-completion/completions/statestore
      statestore completion zsh > "${fpath[1]}/_statestore"
      statestore completion fish > ~/.config/fish/completions/statestore.fish
    """
    made = get_completion_class(shell)
    assert made is not None, "click knows these three"
    root = ctx.find_root().command
    click.echo(made(root, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
