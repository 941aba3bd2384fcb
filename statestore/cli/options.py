"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import click

from statestore.config import FILE_VARIABLE

_LONGEST_S: Final = 1e9  # thirty years; beyond a few centuries the clock's own numbers end


class Seconds(click.types.FloatParamType):
    """A number of seconds that a clock can count: neither infinite nor no number at all."""

    name = "seconds"

    def __init__(self, least: float = 0.0) -> None:
        self._least = least

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Raises `click.BadParameter`."""
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not self._least <= number <= _LONGEST_S:  # nan is in no range
            self.fail(
                f"{value} is not a number of seconds from {self._least:g} to {_LONGEST_S:g}.",
                param,
                ctx,
            )
        return number


as_json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for scripts."
)

yes_option: Final = click.option("--yes", "-y", is_flag=True, help="Do not ask.")

config_option: Final = click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"A TOML file of settings. By default ${FILE_VARIABLE}, else the user's own.",
)

#: Where the commands' settings are, among the context's metadata.
CONFIG: Final = "statestore.config"

pass_config: Final = click.decorators.pass_meta_key(CONFIG, doc_description="the settings")
