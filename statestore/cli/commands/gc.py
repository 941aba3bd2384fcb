"""`statestore gc`: what expired, and what interrupted writes left behind, goes."""

from __future__ import annotations

import click

from statestore.cli.options import Seconds, as_json_option
from statestore.cli.render import counted, emit_json, size
from statestore.settings import open_store


@click.command()
@click.option(
    "--grace",
    type=Seconds(),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Leave younger blobs alone: their writers may be at work.",
)
@as_json_option
@click.pass_obj
def gc(url: str, grace: float, as_json: bool) -> None:
    """Remove expired entries, and what interrupted writes left behind.

    \b
    Example:
      statestore --store ./states gc
    """
    with open_store(url, create=False) as store:
        swept = store.sweep(grace)
    if as_json:
        emit_json({"blobs": swept.blobs, "blob_bytes": swept.blob_bytes, "expired": swept.expired})
    else:
        click.echo(
            f"removed {counted(swept.expired, 'expired state')} and "
            f"{counted(swept.blobs, 'left-over blob')} "
            f"({size(swept.blob_bytes)})"
        )
