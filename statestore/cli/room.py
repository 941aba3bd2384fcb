"""`statestore pin`, `unpin`, `rm` and `evict`: what stays, and what goes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from statestore.cli.asking import agree
from statestore.cli.options import as_json_option, yes_option
from statestore.cli.render import age, counted, digits, emit_json, size
from statestore.cli.selecting import Selection, selection_options
from statestore.cli.victims import BY_ENTRY, Victim, choose, remove
from statestore.errors import InputError, NotFoundError
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.url import size_bytes


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
    _require_some(key, selection)
    with open_store(url, create=False) as store:
        victims = _named(store, key) if key else choose(store, selection, None, None)
        what = str(victims[0].key) if len(victims) == 1 else counted(len(victims), "state")
        if victims and not yes:
            agree(f"Remove {what} ({size(_bytes(victims))})?", yes=False)
            victims = victims if key else _still(store, selection, victims)
        gone = list(remove(store, victims, "deleted"))
    if as_json:
        emit_json({"entries": len(gone), "blob_bytes": _bytes(gone)})
    elif key and not gone:
        click.echo("it had gone already")
    else:
        click.echo("removed" if len(key) == 1 else f"removed {_said(gone)}")


@click.command()
@click.option("--to", "target", metavar="SIZE", help="10GiB, 500MB, or 0 for all.")
@selection_options
@click.option(
    "--policy",
    type=click.Choice(BY_ENTRY),
    help="Order by this policy, not by the scores that are stored.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@yes_option
@as_json_option
@click.pass_obj
def evict(
    url: str,
    target: str | None,
    selection: Selection,
    policy: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove what is worth least.

    What was selected is brought down to --to SIZE. Without --to all that was selected goes.
    Pinned states count and stay, unless --pinned asks for them. Of several tiers, the last one
    is brought down. A budget in the store's URL does this by itself, at each put.

    \b
    Examples:
      statestore --store ./states evict --to 10GiB
      statestore --store ./states evict --unused-for 30d --dry-run
      statestore --store ./states evict --namespace tenant --to 1GiB --policy lru --yes
    """
    to_bytes = None if target is None else size_bytes(target, "--to")
    if to_bytes is None and not selection.text:
        raise InputError("evict: say what goes, by --to SIZE or by a filter")
    with open_store(url, create=False) as store:
        victims: Sequence[Victim] = ()
        asked = dry_run or not yes
        if asked or not _by_scores(selection, to_bytes, policy):
            victims = choose(store, selection, to_bytes, policy)
        if dry_run:
            _foretell(store, victims, as_json=as_json)
            return
        if victims and asked:
            agree(f"Remove {_said(victims)}?", yes=yes)
        gone, freed = _make_room(store, selection, to_bytes, policy, victims, asked=asked)
        left = store.usage(selection.where.namespace).blob_bytes
    if as_json:
        emit_json({"entries": gone, "blob_bytes": freed, "left_bytes": left})
    else:
        click.echo(f"removed {counted(gone, 'state')} ({size(freed)}); {size(left)} are left")


def _by_scores(selection: Selection, to_bytes: int | None, policy: str | None) -> bool:
    """Whether the place can do it by itself."""
    return to_bytes is not None and policy is None and selection.namespace_alone


def _make_room(
    store: StateStore,
    selection: Selection,
    to_bytes: int | None,
    policy: str | None,
    victims: Sequence[Victim],
    *,
    asked: bool,
) -> tuple[int, int]:
    """How many states went, and their bytes."""
    if to_bytes is not None and _by_scores(selection, to_bytes, policy):
        return _evict(store, to_bytes, selection.where.namespace)
    if asked:
        victims = _still(store, selection, victims, to_bytes, policy)
    gone = list(remove(store, victims, "evicted"))
    return len(gone), _bytes(gone)


def _still(
    store: StateStore,
    selection: Selection,
    victims: Sequence[Victim],
    to_bytes: int | None = None,
    policy: str | None = None,
) -> list[Victim]:
    """Those that were not pinned or used while a person thought it over."""
    agreed = {victim.key for victim in victims}
    again = choose(store, selection, to_bytes, policy)
    return [victim for victim in again if victim.key in agreed]


def _evict(store: StateStore, to_bytes: int, namespace: str | None) -> tuple[int, int]:
    """As `_make_room`; the backend takes a few hundred at a time."""
    entries = freed = 0
    while True:
        gone = store.backend.evict(to_bytes, store.now(), namespace=namespace)
        if gone.entries == 0:
            return entries, freed
        entries, freed = entries + gone.entries, freed + gone.blob_bytes


def _foretell(store: StateStore, victims: Sequence[Victim], *, as_json: bool) -> None:
    """Say what would go."""
    if as_json:
        keys = [str(victim.key) for victim in victims]
        emit_json({"entries": len(keys), "blob_bytes": _bytes(victims), "keys": keys})
        return
    now = store.now()
    for victim in victims:
        worth = f"score {age(now - victim.score)} ago" if victim.score <= now else "worth keeping"
        why = worth if victim.ready else "quarantined"
        click.echo(f"{victim.key}  {size(victim.blob_bytes):>10}  {why}")
    click.echo(f"would remove {_said(victims)}")


def _pin(
    url: str, keys: Sequence[str], selection: Selection, *, pinned: bool, yes: bool, as_json: bool
) -> None:
    _require_some(keys, selection)
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


def _require_some(keys: Sequence[str], selection: Selection) -> None:
    if bool(keys) == bool(selection.text):
        raise InputError("give keys, or filters, one of the two: --help lists them")


def _named(store: StateStore, keys: Sequence[str]) -> list[Victim]:
    return [Victim.of(store.entry(digits(key)), 0.0) for key in keys]


def _bytes(victims: Sequence[Victim]) -> int:
    return sum(victim.blob_bytes for victim in victims)


def _said(victims: Sequence[Victim]) -> str:
    return f"{counted(len(victims), 'state')} ({size(_bytes(victims))})"
