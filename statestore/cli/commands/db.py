"""`statestore db`: the revision of a SQL catalog, and the ways up and down."""

from __future__ import annotations

import click

from statestore.cli.asking import agree
from statestore.cli.options import as_json_option, yes_option
from statestore.cli.render import emit_fields, emit_json
from statestore.settings import open_revisions


@click.group("db")
def database() -> None:
    """Look at the catalog's tables, upgrade them, take them back.

    A fleet's catalog is upgraded by an operator, with these commands; a file store upgrades itself
    when it is opened.

    \b
    Example:
      statestore --store 'postgresql://me@host/db?blobs=file:///shared/states' db current
    """


@database.command(short_help="Show the revision there is, and the one that is needed.")
@as_json_option
@click.pass_obj
def current(url: str, as_json: bool) -> None:
    """Show which revision the catalog is at, and which one this release needs.

    \b
    Example:
      statestore --store ./states db current --json
    """
    with open_revisions(url) as revisions:
        status = revisions.status()
        fields = {
            "catalog": revisions.place.removeprefix("catalog "),
            "revision": status.found,
            "head": status.head,
            "standing": status.standing.value,
        }
    if as_json:
        emit_json(fields)
    else:
        emit_fields({**fields, "revision": status.found or "none"})


@database.command(short_help="Create or upgrade the catalog's tables.")
@click.pass_obj
def upgrade(url: str) -> None:
    """Create or upgrade the catalog's tables; nothing where they are up to date.

    Safe to start on many hosts at once: one does the work, the others wait for it.

    \b
    Example:
      statestore --store 'postgresql://me@host/db?blobs=file:///shared/states' db upgrade
    """
    with open_revisions(url) as revisions:
        before = revisions.status()
        revisions.upgrade()
        after = revisions.status()
    if after == before:
        click.echo(f"at {after.found} already")
    else:
        click.echo(f"upgraded from {before.found or 'nothing'} to {after.found}")


@database.command(short_help="Take the tables back for an older release.")
@click.argument("revision")
@yes_option
@click.pass_obj
def downgrade(url: str, revision: str, yes: bool) -> None:
    """Take the tables back to REVISION, for an older release; "base" removes them.

    What newer tables and columns held is lost. The blobs stay, until a gc.

    \b
    Example:
      statestore --store ./states db downgrade 0001
    """
    with open_revisions(url) as revisions:
        before = revisions.status().found
        agree(f"Take {revisions.place} from {before or 'nothing'} back to {revision}?", yes=yes)
        revisions.downgrade(revision)
    click.echo(f"downgraded from {before} to {revision}")
