"""`statestore rm`: states that somebody names go."""

from __future__ import annotations

from collections.abc import Sequence

import click

from statestore.cli.asking import agree
from statestore.cli.options import as_json_option, yes_option
from statestore.cli.render import counted, digits, emit_json, size
from statestore.cli.selecting import Selection, require_some, selection_options
from statestore.cli.victims import Victim, bytes_of, choose, remove, said, still
from statestore.settings import open_store
from statestore.store import StateStore


@click.command()
@click.argument("key", nargs=-1)
@selection_options
@yes_option
@as_json_option
@click.pass_obj
def rm(url: str, key: Sequence[str], selection: Selection, yes: bool, as_json: bool) -> None:
    """Remove states.

    By KEY, which may be its first few hex digits, or by filter. A filter passes over what is
    pinned, unless --pinned is part of it.

    \b
    Examples:
      statestore --store ./states rm 3fa9
      statestore --store ./states rm --model old.pth --yes
    """
    require_some(key, selection)
    with open_store(url, create=False) as store:
        victims = _named(store, key) if key else choose(store, selection, None, None)
        what = str(victims[0].key) if len(victims) == 1 else counted(len(victims), "state")
        if victims and not yes:
            agree(f"Remove {what} ({size(bytes_of(victims))})?", yes=False)
            victims = victims if key else still(store, selection, victims)
        gone = list(remove(store, victims, "deleted"))
    if as_json:
        emit_json({"entries": len(gone), "blob_bytes": bytes_of(gone)})
    elif key and not gone:
        click.echo("it had gone already")
    else:
        click.echo("removed" if len(key) == 1 else f"removed {said(gone)}")


def _named(store: StateStore, keys: Sequence[str]) -> list[Victim]:
    return [Victim.of(store.entry(digits(key)), 0.0, store.now()) for key in keys]
