"""`statestore verify`: reads and checks what is stored."""

from __future__ import annotations

from collections.abc import Sequence

import click

from statestore.cli.options import as_json_option
from statestore.cli.render import emit_json
from statestore.entry import Entry, EntryFilter, Status
from statestore.errors import LockedError
from statestore.settings import open_store
from statestore.store import StateStore


@click.command()
@click.option("--fix", is_flag=True, help="Quarantine what is unsound, so that it is replaced.")
@as_json_option
@click.pass_obj
@click.pass_context
def verify(ctx: click.Context, url: str, fix: bool, as_json: bool) -> None:
    """Read and check every blob that may be used. Exits with 3 if one is unsound.

    \b
    Example:
      statestore --store ./states verify --fix
    """
    with open_store(url, create=False) as store:
        entries = list(store.list(EntryFilter(status=Status.READY)))
        problems = _check_all(store, entries, quiet=as_json)
        if fix:
            for entry, problem in problems:
                if not problem.startswith(LockedError.__name__):  # sound for whoever has the key
                    store.quarantine(entry, problem)
    _report_check(len(entries), problems, as_json=as_json)
    if problems:
        ctx.exit(3)


def _check_all(
    store: StateStore, entries: Sequence[Entry], *, quiet: bool
) -> list[tuple[Entry, str]]:
    """Unsound entries with what is wrong; an entry that was removed meanwhile is none."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    bare = quiet or not console.is_terminal
    shown = track(entries, "checking", console=console, transient=True, disable=bare)
    found = [(entry, problem) for entry in shown if (problem := store.check(entry))]
    return [(entry, problem) for entry, problem in found if store.holds(entry)]


def _report_check(checked: int, problems: Sequence[tuple[Entry, str]], *, as_json: bool) -> None:
    if as_json:
        unsound = [{"key": str(entry.key), "problem": problem} for entry, problem in problems]
        emit_json({"checked": checked, "unsound": unsound})
        return
    for entry, problem in problems:
        click.echo(f"{entry.key}  {problem}")
    click.echo(f"checked {checked}, unsound {len(problems)}")
