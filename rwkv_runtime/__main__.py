"""The `rwkv-runtime` command: its options, and the table of its commands. Each command has a file
of its own, loaded when it is called: whoever asks for help does not wait for torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from statestore.cli.group import LazyGroup, Line
from statestore.cli.options import CONFIG, config_option
from statestore.config import Config, load
from statestore.errors import SettingsError

_TABLE: Final = {
    "Try": {
        "demo": "Read a document once, then answer questions about it from new processes.",
    },
    "Ask": {
        "ask": "Answer questions about a document.",
        "chat": "Talk with a model.",
        "generate": "Go on with a text.",
        "warm": "Read documents ahead of the questions.",
    },
    "Look": {
        "explain": "Say why a prompt would hit or miss, boundary by boundary.",
        "fingerprint": "Show the digest that a model's states carry, and what goes into it.",
    },
    "Serve": {
        "serve": "Serve a model to OpenAI's clients, with documents that are read once.",
    },
}
_LINES: Final = [
    *(
        Line(name, f"rwkv_runtime.commands.{name}:{name}", summary, section, extra="runtime")
        for section, commands in _TABLE.items()
        for name, summary in commands.items()
    ),
    Line(
        "completion",
        "statestore.cli.commands.completion:completion",
        "Print the script that completes this command's words in SHELL.",
        "Set up",
    ),
]


class _Commands(LazyGroup):
    """What a command needs may be missing when it is run: that is told as at its loading."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(("rwkv_runtime", "statestore")):
                raise
            click.secho(f"{ctx.info_name}: {error}", fg="red", err=True)
            ctx.exit(SettingsError.exit_code)


@click.group(
    "rwkv-runtime",
    cls=_Commands,
    lines=_LINES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@config_option
@click.version_option(package_name="rwkv-statestore", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, file: Path | None) -> None:
    """Answer from documents that were read once.

    Options may be set in a file and in the environment too: see `statestore config --help`.

    Exit codes are those of `statestore --help`.

    \b
    Example, to begin with:
      rwkv-runtime demo
    """
    if ctx.invoked_subcommand != "completion":
        settings = ctx.meta[CONFIG] = load(file)
        ctx.default_map = dict.fromkeys(main.list_commands(ctx), defaults_of(settings))


def defaults_of(settings: Config) -> dict[str, object]:
    """What settings say, by the names of the commands' parameters."""
    given = settings.given("store") | settings.given("runtime") | settings.given("server")
    if "initial_state" in given:
        given["initial"] = given.pop("initial_state")
    return given


if __name__ == "__main__":
    main(prog_name="rwkv-runtime")
