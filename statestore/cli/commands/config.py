"""`statestore config`: the settings that hold, and where each one came from. No secret is shown."""

from __future__ import annotations

from typing import Final

import click

from statestore.cli.options import as_json_option, pass_config
from statestore.cli.render import emit_json
from statestore.config import Config, Source, default_file, rows, template

_WIDE: Final = 40  # characters; what is longer does not push the others aside


@click.group("config")
def config() -> None:
    """Show the settings, and where each one came from.

    A file, the environment and a command's options are read in this order; the later ones win.
    """


@config.command()
@as_json_option
@pass_config
def show(settings: Config, as_json: bool) -> None:
    """Show every setting, its value, and what set it.

    \b
    Example:
      statestore config show --json
    """
    shown = list(rows(settings))
    if as_json:
        values = [
            {
                "name": row.name,
                "value": row.value,
                "source": row.origin.source.value,
                "origin": str(row.origin),
                "variable": row.variable,
            }
            for row in shown
        ]
        file = None if settings.file is None else str(settings.file)
        emit_json({"file": file, "settings": values, "strays": settings.strays})
        return
    click.echo(f"file  {settings.file or f'none; would be {default_file()}'}\n")
    cells = [(row.name, _text(row.value), str(row.origin)) for row in shown]
    wide = [max(len(row[i]) for row in cells if len(row[i]) <= _WIDE) for i in range(2)]
    for row, (name, value, origin) in zip(shown, cells, strict=True):
        line = f"{name:<{wide[0]}}  {value:<{wide[1]}}  {origin}"  # never cut: it may be a URL
        click.echo(click.style(line, dim=row.origin.source is Source.DEFAULT))
    for name in settings.strays:
        click.secho(f"{name} is set, but is no setting", fg="yellow", err=True)


@config.command("template")
def print_template() -> None:
    """Print a file with every setting at its default, to begin with.

    \b
    Example:
      statestore config template > states.toml
    """
    click.echo(template(), nl=False)


def _text(value: object) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}={inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
