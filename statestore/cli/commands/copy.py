"""`statestore copy`: states from one place to another."""

from __future__ import annotations

from collections.abc import Callable

import click

from statestore.cli.options import as_json_option
from statestore.cli.progress import progress
from statestore.cli.selecting import Selection, selection_options
from statestore.cli.tallies import exit_code, report
from statestore.cli.targets import open_target
from statestore.cli.urls import StoreUrl
from statestore.entry import Entry
from statestore.errors import BackendError, ContainerError, InputError
from statestore.lanes import LANES, in_lanes
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.transfer import Loaded, Outcome, Source, Tally, bring, encrypts, present, usable
from statestore.url import places


@click.command("copy")
@click.argument("source", metavar="FROM", type=StoreUrl())
@click.argument("target", metavar="TO", type=StoreUrl())
@selection_options
@click.option("--decrypt", is_flag=True, help="Write clear what keys= of FROM's URL opens.")
@click.option(
    "--threads", type=click.IntRange(1, 64), default=LANES, show_default=True, help="At a time."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be copied.")
@as_json_option
@click.pass_context
def copy(
    ctx: click.Context,
    source: str,
    target: str,
    selection: Selection,
    decrypt: bool,
    threads: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy states from one store to another, of whatever kind.

    FROM and TO are URLs. All that may be used, or what the filters select, newest use first, with
    labels, pins, expiry, hits and cost. Each is checked on the way; what is unsound stays behind
    (exit code 3), and what is there already stays as it is: a copy that was stopped is simply begun
    anew. Of several tiers, the last one is meant. Where TO has a budget and is full, what was used
    last stays, and the rest is left (exit code 4).

    After an outage of the last tier, copy a nearer one to it: that brings what was put meanwhile.

    Containers travel as they are. Encrypted ones stay so where TO has no keys, unless --decrypt;
    where it has, they are encrypted with its first key.

    \b
    Examples:
      statestore copy ./states redis://host:6379/0
      statestore copy ./states 'postgresql://me@host/db?blobs=s3://bucket/states' --pinned
      statestore copy file:///var/lib/near redis://host:6379/0 --newer-than 1d --dry-run
    """
    if places(source)[-1] == places(target)[-1]:
        raise InputError("copy: FROM and TO are the same place")
    tally = Tally()
    with (
        open_store(places(source)[-1], create=False) as origin,
        open_target(target, dry_run=dry_run) as destination,
    ):
        opened = decrypt or encrypts(destination.backend)
        work = _Copier(Source(origin, opened=opened), destination, dry_run=dry_run).take
        try:
            _copy(origin, selection, work, tally, lanes=threads, quiet=as_json)
        except BackendError:
            report(tally, "copied", as_json=False, err=True)
            raise
    report(tally, "copied", as_json=as_json, dry_run=dry_run)
    ctx.exit(exit_code(tally))


def _copy(
    origin: StateStore,
    selection: Selection,
    work: Callable[[Entry], tuple[Loaded, Outcome]],
    tally: Tally,
    *,
    lanes: int,
    quiet: bool,
) -> None:
    now = origin.now()
    wanted = (entry for entry in selection.entries(origin) if usable(entry, now))
    total = None if selection.text else origin.usage().blob_bytes
    with progress("copying", total, quiet=quiet) as done:
        for loaded, outcome in in_lanes(wanted, work, lanes):
            tally.add(loaded, outcome)
            done(loaded.entry.blob_bytes)


class _Copier:
    """Takes states from a source to a place."""

    def __init__(self, source: Source, destination: StateStore, *, dry_run: bool) -> None:
        self._source = source
        self._destination = destination
        self._dry_run = dry_run

    def take(self, entry: Entry) -> tuple[Loaded, Outcome]:
        """What became of one state. Raises `BackendError` where a place fails."""
        if present(self._destination, entry):
            return Loaded(entry, None), Outcome.PRESENT
        loaded = self._source.load(entry)
        if loaded.outcome is not None or loaded.blob is None:
            return loaded, loaded.outcome or Outcome.GONE
        if self._dry_run:
            return loaded, Outcome.COPIED
        try:
            return loaded, bring(self._destination, loaded.entry, loaded.blob)
        except (ContainerError, InputError) as error:
            return Loaded(entry, None, f"{type(error).__name__}: {error}"), Outcome.DAMAGED
