"""`statestore pin`, `unpin`, `rm` and `evict`: what stays, and what goes."""

from __future__ import annotations

import click

from statestore.cli.options import as_json_option
from statestore.cli.render import digits, emit_json, size
from statestore.errors import InputError
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.url import size_bytes


@click.command()
@click.argument("key")
@click.pass_obj
def pin(url: str, key: str) -> None:
    """Keep a state when room is made. KEY may be its first few hex digits.

    \b
    Example:
      statestore --store ./states pin 3fa9
    """
    _pin(url, key, pinned=True)


@click.command()
@click.argument("key")
@click.pass_obj
def unpin(url: str, key: str) -> None:
    """Let a state go when room is made. KEY may be its first few hex digits.

    \b
    Example:
      statestore --store ./states unpin 3fa9
    """
    _pin(url, key, pinned=False)


@click.command()
@click.option("--to", "target", required=True, metavar="SIZE", help="10GiB, 500MB, or 0 for all.")
@click.option("--namespace", help="Only this namespace, down to SIZE of its own.")
@as_json_option
@click.pass_obj
def evict(url: str, target: str, namespace: str | None, as_json: bool) -> None:
    """Remove what is worth least until the rest comes to SIZE. Pinned states stay.

    A budget in the store's URL does this by itself, at each put.

    \b
    Example:
      statestore --store ./states evict --to 10GiB
    """
    to_bytes = size_bytes(target, "--to")
    with open_store(url, create=False) as store:
        entries, freed = _evict(store, to_bytes, namespace)
        left = store.usage(namespace).blob_bytes
    if as_json:
        emit_json({"entries": entries, "blob_bytes": freed, "left_bytes": left})
    else:
        click.echo(f"removed {entries} states ({size(freed)}); {size(left)} are left")


@click.command()
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm(url: str, key: str, yes: bool) -> None:
    """Remove one state. KEY may be its first few hex digits.

    \b
    Example:
      statestore --store ./states rm 3fa9
    """
    with open_store(url, create=False) as store:
        entry = store.entry(digits(key))
        if not yes:
            click.confirm(f"Remove {entry.key} ({size(entry.blob_bytes)})?", abort=True)
        removed = store.delete(entry.key)
    click.echo("removed" if removed else "it had gone already")


def _pin(url: str, key: str, *, pinned: bool) -> None:
    with open_store(url, create=False) as store:
        entry = store.entry(digits(key))
        if not store.update(entry.key, pinned=pinned):
            raise InputError(f"{entry.key} has gone meanwhile")
    click.echo("pinned" if pinned else "unpinned")


def _evict(store: StateStore, to_bytes: int, namespace: str | None) -> tuple[int, int]:
    """How many states went, and their bytes; the backend takes a few hundred at a time."""
    entries = freed = 0
    while True:
        gone = store.backend.evict(to_bytes, store.now(), namespace=namespace)
        if gone.entries == 0:
            return entries, freed
        entries, freed = entries + gone.entries, freed + gone.blob_bytes
