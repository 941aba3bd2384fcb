"""`statestore completion` and `rwkv-runtime completion`: the script that lets a shell complete
commands, options and stores.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes this command's words in SHELL.

    \b
    Examples, and the same for `rwkv-runtime`:
      statestore completion bash > ~/.local/share/bash-completion/completions/statestore
      statestore completion zsh > "${fpath[1]}/_statestore"
      statestore completion fish > ~/.config/fish/completions/statestore.fish
    """
    made = get_completion_class(shell)
    assert made is not None, "click knows these three"
    root = ctx.find_root().command
    program = str(root.name)
    variable = f"_{program}_COMPLETE".replace("-", "_").upper()
    click.echo(made(root, {}, program, variable).source())
