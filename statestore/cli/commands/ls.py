"""`statestore ls`: what is stored, as a table or as JSON, as a stream wherever it can be one."""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

import click

from statestore.cli.columns import emit_listing
from statestore.cli.options import as_json_option
from statestore.cli.render import record
from statestore.cli.selecting import Selection, selection_options
from statestore.entry import Entry
from statestore.settings import open_store

#: What a listing may be sorted by: the highest comes first.
SORTS: Final[dict[str, Callable[[Entry], Any]]] = {
    "used": lambda entry: entry.used_at,
    "created": lambda entry: entry.created_at,
    "size": lambda entry: entry.blob_bytes,
    "tokens": lambda entry: entry.key.n_tokens,
    "hits": lambda entry: entry.hits,
    "cost": lambda entry: entry.cost_s,
    "score": lambda entry: entry.score,
}


@click.command("ls")
@selection_options
@click.option(
    "--sort", type=click.Choice(list(SORTS)), default="used", help="What is highest comes first."
)
@click.option("--reverse", is_flag=True, help="What is lowest comes first.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@as_json_option
@click.pass_obj
def list_entries(
    url: str, selection: Selection, sort: str, reverse: bool, limit: int | None, as_json: bool
) -> None:
    """List what is stored, newest use first.

    Of several tiers, the last one is listed, which holds everything. A listing by use is printed
    as it is read; for another order all entries, or the first --limit, are kept in memory.
    `--sort score --reverse` begins with what goes first; `show` says what a score is.

    \b
    Examples:
      statestore --store ./states ls --role segment --limit 10
      statestore --store ./states ls --label title --sort hits
      statestore --store ./states ls --unused-for 7d --larger-than 10MiB --json
    """
    with open_store(url, create=False) as store:
        entries = _ordered(selection.entries(store), sort, limit, reverse=reverse)
        if as_json:
            _emit_json(entries)
        elif not emit_listing(entries, store.now()):
            click.echo(
                "no such state is stored" if selection.text else "nothing is stored here yet"
            )


def _ordered(
    entries: Iterator[Entry], sort: str, limit: int | None, *, reverse: bool
) -> Iterable[Entry]:
    """The first `limit` entries in the order asked for."""
    if sort == "used" and not reverse:
        return islice(entries, None if limit is None else min(limit, sys.maxsize))
    if limit is not None:
        best = heapq.nsmallest if reverse else heapq.nlargest
        return best(limit, entries, SORTS[sort])
    return sorted(entries, key=SORTS[sort], reverse=not reverse)


def _emit_json(entries: Iterable[Entry]) -> None:
    """Print a JSON array with one entry on each line."""
    click.echo("[", nl=False)
    comma = ""
    for entry in entries:
        click.echo(f"{comma}\n  {json.dumps(record(entry))}", nl=False)
        comma = ","
    click.echo("\n]" if comma else "]")
