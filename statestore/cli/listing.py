"""`statestore ls` and `show`: what is stored, in all and one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

import click

from statestore.cli.options import as_json_option
from statestore.cli.render import age, digits, emit_fields, emit_json, emit_table, record, size
from statestore.entry import Entry, EntryFilter, Role, Status
from statestore.settings import open_store


@click.command("ls")
@click.option("--model", help="Only states of this model name.")
@click.option("--namespace", help="Only this namespace.")
@click.option("--role", type=click.Choice([role.value for role in Role]), help="Only this role.")
@click.option("--quarantined", is_flag=True, help="Only states that are barred from use.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, newest use first.")
@as_json_option
@click.pass_obj
def list_entries(
    url: str,
    model: str | None,
    namespace: str | None,
    role: str | None,
    quarantined: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List what is stored, newest use first.

    Of several tiers, the last one is listed, which holds everything.

    \b
    Example:
      statestore --store ./states ls --role segment --limit 10
    """
    where = EntryFilter(
        model=model,
        namespace=namespace,
        role=Role(role) if role else None,
        status=Status.QUARANTINED if quarantined else None,
    )
    with open_store(url, create=False) as store:
        entries = list(islice(store.list(where), limit))
    if as_json:
        emit_json([record(entry) for entry in entries])
    else:
        _table(entries)


@click.command()
@click.argument("key")
@as_json_option
@click.pass_obj
def show(url: str, key: str, as_json: bool) -> None:
    """Show one entry. KEY may be its first few hex digits.

    \b
    Example:
      statestore --store ./states show 3fa9
    """
    with open_store(url, create=False) as store:
        fields = record(store.entry(digits(key)))
    if as_json:
        emit_json(fields)
    else:
        emit_fields(fields)


def _table(entries: Sequence[Entry]) -> None:
    now = time.time()
    columns = ["key", ">tokens", "role", "model", "namespace", ">size", ">hits", ">used", "status"]
    rows = [
        [
            entry.key.hex[:16],
            str(entry.key.n_tokens),
            entry.role.value,
            entry.model or entry.fingerprint.hex()[:12],
            entry.namespace,
            size(entry.blob_bytes),
            str(entry.hits),
            f"{age(now - entry.used_at)} ago",
            entry.status.value + (", pinned" if entry.pinned else ""),
        ]
        for entry in entries
    ]
    if rows:
        emit_table(columns, rows)
    else:
        click.echo("nothing is stored here yet")
