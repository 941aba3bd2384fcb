"""`statestore import`: states from a file."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from statestore.archive import ArchiveReader, Record
from statestore.cli.layout_files import LAYOUTS, Named, read_layout
from statestore.cli.options import as_json_option, pass_config
from statestore.cli.progress import progress
from statestore.cli.render import digits
from statestore.cli.tallies import exit_code, report
from statestore.cli.targets import open_target
from statestore.config import Config
from statestore.errors import BackendError, ContainerError, InputError
from statestore.lanes import LANES, in_lanes
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.transfer import Loaded, Outcome, Tally, bring, check, present, usable
from statestore.url import places


@click.command("import")
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--dry-run", is_flag=True, help="Read and check all of it, store nothing.")
@click.option(
    "--threads", type=click.IntRange(1, 64), default=LANES, show_default=True, help="Storing."
)
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="FILE is one state as another engine writes it; needs --name and --like.",
)
@click.option("--name", help="What the state of --layout is called; it is found by name alone.")
@click.option(
    "--like",
    metavar="KEY",
    help="A stored state of the same model: it tells fingerprint, tensors and namespace.",
)
@click.option(
    "--tokens", type=click.IntRange(min=0), default=0, help="Tokens that --layout's state has read."
)
@as_json_option
@pass_config
@click.pass_context
def import_states(
    ctx: click.Context,
    config: Config,
    file: str,
    dry_run: bool,
    threads: int,
    layout: str | None,
    name: str | None,
    like: str | None,
    tokens: int,
    as_json: bool,
) -> None:
    """Store the states of a FILE that `export` wrote.

    "-" is stdin. Each state is checked; what is there already stays as it is, so an import that was
    stopped is simply begun anew. Of a file that ends too early the sound part is stored; damage
    ends with exit code 3. Of several tiers, the last one takes the states.

    A state is used for the weights and tokens that its key says, whoever wrote the file: import
    from those whom you would let write to the store.

    \b
    Examples:
      statestore --store ./states import states.rwkvar
      ssh host statestore export - --pinned | statestore --store ./states import -
      statestore --store ./states import s.bin --layout rwkv-cpp --name notes --like 3fa9
    """
    place = places(config.store.url)[-1]
    if layout is not None:
        if name is None or like is None:
            raise InputError("import --layout needs --name and --like")
        with open_store(place, create=False) as store:
            entry = store.entry(digits(like))
            named = Named(name, tokens, config.store.salt(entry.namespace))
            key = read_layout(store, Path(file), layout, entry, named)
        click.echo(f"stored as {key}")
        return
    tally = Tally()
    with ExitStack() as exits, _source(file) as (stream, size_bytes):
        reader = _opened(file, stream)  # before a store is made for what is no archive
        store = exits.enter_context(open_target(place, dry_run=dry_run))
        importer = _Importer(store, dry_run=dry_run)
        records = _Readable(file, reader)
        try:
            with progress("importing", size_bytes, quiet=as_json) as done:
                for loaded, outcome in in_lanes(records, importer.take, threads):
                    tally.add(loaded, outcome)
                    done(loaded.entry.blob_bytes)
        except BackendError:
            report(tally, "imported", as_json=False, dry_run=dry_run, err=True)
            raise
    report(
        tally,
        "imported",
        as_json=as_json,
        dry_run=dry_run,
        broken=records.broken,
        more={"about": dict(reader.about)},
    )
    ctx.exit(exit_code(tally, records.broken))


class _Readable:
    """The records of an archive as far as they can be read; then why no further."""

    def __init__(self, file: str, reader: ArchiveReader) -> None:
        self._file = file
        self._reader = reader
        self.broken = ""

    def __iter__(self) -> Iterator[Record]:
        try:
            yield from self._reader
        except ContainerError as error:
            self.broken = f"{self._file}: {type(error).__name__}: {error}"


class _Importer:
    """Checks records and stores them."""

    def __init__(self, store: StateStore, *, dry_run: bool) -> None:
        self._store = store
        self._dry_run = dry_run

    def take(self, record: Record) -> tuple[Loaded, Outcome]:
        """What became of one record. Raises `BackendError` where the place fails."""
        entry, blob, problem = record.entry, record.blob, record.problem
        if problem:
            return Loaded(entry, None, problem), Outcome.DAMAGED
        if not usable(entry, self._store.now()):
            return Loaded(entry, None), Outcome.GONE
        try:
            check(entry, blob)
            loaded = Loaded(entry, blob)
            if not self._dry_run:
                return loaded, bring(self._store, entry, blob)
            there = present(self._store, entry)
            return loaded, Outcome.PRESENT if there else Outcome.COPIED
        except (ContainerError, InputError) as error:
            return Loaded(entry, None, f"{type(error).__name__}: {error}"), Outcome.DAMAGED


def _opened(file: str, stream: BinaryIO) -> ArchiveReader:
    """The archive in `file`. Raises a `ContainerError` that names it."""
    try:
        return ArchiveReader(stream)
    except ContainerError as error:
        raise type(error)(f"{file}: {error}") from error


@contextmanager
def _source(file: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The bytes, and how many there are, where that is known."""
    if file == "-":
        yield sys.stdin.buffer, None
        return
    try:
        stream = Path(file).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(f"{file or 'no name'} cannot be read: {error.strerror}") from error
    with stream:
        status = os.fstat(stream.fileno())
        yield stream, status.st_size if stat.S_ISREG(status.st_mode) else None
