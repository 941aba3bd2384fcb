"""Commands of `statestore`. Each opens the store that --store or RWKV_STATESTORE_URL names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

import click

from statestore.backends.base import Backend
from statestore.backends.budgeted import Budgeted
from statestore.backends.wrapper import Wrapper
from statestore.cli.database import database
from statestore.cli.group import ErrorGroup
from statestore.cli.keygen import keygen
from statestore.cli.render import age, digits, emit_fields, emit_json, emit_table, record, size
from statestore.cli.room import evict, pin, unpin
from statestore.cli.simulate import simulate
from statestore.entry import Entry, EntryFilter, Role, Status
from statestore.errors import LockedError
from statestore.settings import URL_VARIABLE, default_url, open_store
from statestore.store import StateStore

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


@click.group(cls=ErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store",
    "url",
    metavar="URL",
    help=f"The store; a directory means file://. By default ${URL_VARIABLE}, "
    "else a directory among the user's application data.",
)
@click.version_option(package_name="rwkv-statestore", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, url: str | None) -> None:
    """Look at a store of RWKV states, check it, tidy it.

    \b
    Examples:
      statestore --store ./states ls
      statestore --store ./states verify --fix
      RWKV_STATESTORE_URL=file:///var/lib/states statestore stats --json
    """
    ctx.obj = url or default_url()


for command in (database, keygen, pin, unpin, evict):
    main.add_command(command)
main.add_command(simulate)


@main.command("ls")
@click.option("--model", help="Only states of this model name.")
@click.option("--namespace", help="Only this namespace.")
@click.option("--role", type=click.Choice([role.value for role in Role]), help="Only this role.")
@click.option("--quarantined", is_flag=True, help="Only states that are barred from use.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, newest use first.")
@AS_JSON
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


@main.command()
@click.argument("key")
@AS_JSON
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


@main.command()
@click.option("--namespace", help="Only this namespace.")
@AS_JSON
@click.pass_obj
def stats(url: str, namespace: str | None, as_json: bool) -> None:
    """Totals of what is stored.

    Of several tiers, those of the last one, which holds everything.

    \b
    Example:
      statestore --store ./states stats --json
    """
    with open_store(url, create=False) as store:
        usage = store.usage(namespace)
        place = store.backend.url
        limit = _budget(store.backend, namespace)
    if as_json:
        emit_json(
            {
                "url": place,
                "namespace": namespace,
                "budget_bytes": limit,
                "entries": usage.entries,
                "blob_bytes": usage.blob_bytes,
                "state_bytes": usage.state_bytes,
                "quarantined": usage.quarantined,
                "pinned": usage.pinned,
            }
        )
        return
    ratio = usage.blob_bytes / usage.state_bytes if usage.state_bytes else 0.0
    within = "" if limit is None else f" of {size(limit)}, {usage.blob_bytes / limit:.0%}"
    emit_fields(
        {
            "store": place,
            **({} if namespace is None else {"namespace": namespace}),
            "entries": usage.entries,
            "stored": size(usage.blob_bytes) + within,
            "decoded": f"{size(usage.state_bytes)}, stored at {ratio:.2f} of it",
            "quarantined": usage.quarantined,
            "pinned": usage.pinned,
        }
    )


@main.command()
@click.option("--fix", is_flag=True, help="Quarantine what is unsound, so that it is replaced.")
@AS_JSON
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


@main.command()
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


@main.command()
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Leave younger blobs alone: their writers may be at work.",
)
@AS_JSON
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
            f"removed {swept.expired} expired entries and {swept.blobs} left-over blobs "
            f"({size(swept.blob_bytes)})"
        )


def _budget(backend: Backend, namespace: str | None) -> int | None:
    """The bytes that the URL allows, in all or for a namespace."""
    while isinstance(backend, Wrapper):
        if isinstance(backend, Budgeted):
            budget = backend.budget
            return budget.total_bytes if namespace is None else budget.namespaces.get(namespace)
        backend = backend.inner
    return None


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
