"""`statestore keygen`: key files for encrypted stores. No key is ever printed, only its id."""

from __future__ import annotations

from pathlib import Path

import click

from statestore.errors import SettingsError
from statestore.keyring import rotate_key_file, write_key_file


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rotate", is_flag=True, help="Put a new key on top; the older ones still decrypt.")
def keygen(file: Path, rotate: bool) -> None:
    """Make a key FILE, readable by you alone, for the keys= option of a store's URL.

    Keep a copy: what it encrypted cannot be read without it. After --rotate give the file to all
    who open the store; a key may go once nothing that it encrypted is stored.

    \b
    Example:
      statestore keygen states.keys
      statestore --store "file:///var/lib/states?keys=$PWD/states.keys" verify
    """
    if rotate:
        key = rotate_key_file(file)
        click.echo(
            f"{file}: new states are encrypted with {key.id.hex()}, older keys still decrypt"
        )
    elif file.exists():
        raise SettingsError(f"{file} is there already; --rotate puts a new key on top of it")
    else:
        key = write_key_file(file)
        click.echo(f"{file}: made, with key {key.id.hex()}")
