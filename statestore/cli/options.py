"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from statestore.config import FILE_VARIABLE

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
