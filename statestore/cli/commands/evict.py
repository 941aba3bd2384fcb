"""`statestore evict`: what is worth least goes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from statestore.cli.asking import agree
from statestore.cli.options import as_json_option, yes_option
from statestore.cli.render import counted, emit_json, size, worth
from statestore.cli.selecting import Selection, selection_options
from statestore.cli.victims import BY_ENTRY, Rank, Victim, bytes_of, choose, remove, said, still
from statestore.errors import InputError
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.url import size_bytes


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

    What has expired goes first, then what is quarantined, then the lowest score: the moment until
    which a state is worth its bytes, written by the policy at its last put or use.

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
            agree(f"Remove {said(victims)}?", yes=yes)
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
        victims = still(store, selection, victims, to_bytes, policy)
    gone = list(remove(store, victims, "evicted"))
    return len(gone), bytes_of(gone)


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
        emit_json({"entries": len(keys), "blob_bytes": bytes_of(victims), "keys": keys})
        return
    now = store.now()
    for victim in victims:
        why = worth(victim.score, now) if victim.rank is Rank.READY else victim.rank.name.lower()
        click.echo(f"{victim.key.hex[:16]}  {size(victim.blob_bytes):>10}  {why}")
    click.echo(f"would remove {said(victims)}")
