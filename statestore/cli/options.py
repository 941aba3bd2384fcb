"""Options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import click

from statestore.config import FILE_VARIABLE

_LONGEST_S: Final = 1e9  # thirty years; beyond a few centuries the clock's own numbers end


class Seconds(click.FloatRange):
    """A number of seconds that a clock can count: neither infinite nor no number at all."""

    def __init__(self, least: float = 0.0) -> None:
        super().__init__(min=least, max=_LONGEST_S)

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Raises `click.BadParameter`."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):  # which is out of no range
            self.fail(f"{value} is no number of seconds.", param, ctx)
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
