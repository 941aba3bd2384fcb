"""`statestore pin` and `unpin`: what stays when room is made."""

from __future__ import annotations

from collections.abc import Sequence

import click

from statestore.cli.asking import agree
from statestore.cli.options import as_json_option, yes_option
from statestore.cli.render import counted, digits, emit_json
from statestore.cli.selecting import Selection, require_some, selection_options
from statestore.errors import NotFoundError
from statestore.settings import open_store


@click.command()
@click.argument("key", nargs=-1)
@selection_options
@yes_option
@as_json_option
@click.pass_obj
def pin(url: str, key: Sequence[str], selection: Selection, yes: bool, as_json: bool) -> None:
    """Keep states when room is made.

    By KEY, which may be its first few hex digits, or by filter. Asks first where a filter finds
    several.

    \b
    Examples:
      statestore --store ./states pin 3fa9
      statestore --store ./states pin --label title --role segment --yes
    """
    _pin(url, key, selection, pinned=True, yes=yes, as_json=as_json)


@click.command()
@click.argument("key", nargs=-1)
@selection_options
@yes_option
@as_json_option
@click.pass_obj
def unpin(url: str, key: Sequence[str], selection: Selection, yes: bool, as_json: bool) -> None:
    """Let states go when room is made.

    By KEY, which may be its first few hex digits, or by filter. Asks first where a filter finds
    several.

    \b
    Examples:
      statestore --store ./states unpin 3fa9
      statestore --store ./states unpin --unused-for 30d --yes
    """
    _pin(url, key, selection, pinned=False, yes=yes, as_json=as_json)


def _pin(
    url: str, keys: Sequence[str], selection: Selection, *, pinned: bool, yes: bool, as_json: bool
) -> None:
    require_some(keys, selection)
    done = "pinned" if pinned else "unpinned"
    with open_store(url, create=False) as store:
        found = (
            [store.entry(digits(key)).key for key in keys]
            if keys
            else [entry.key for entry in selection.entries(store) if entry.pinned != pinned]
        )
        if not keys and len(found) > 1:
            agree(f"{'Pin' if pinned else 'Unpin'} {counted(len(found), 'state')}?", yes=yes)
        changed = [key for key in found if store.update(key, pinned=pinned)]
    if keys and not changed:
        raise NotFoundError(f"{found[0]} has gone meanwhile")
    if as_json:
        emit_json({"entries": len(changed)})
    else:
        click.echo(done if len(keys) == 1 else f"{done} {counted(len(changed), 'state')}")
