"""`statestore export`: states into one file."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from statestore.archive import ArchiveWriter, Resumed, resume
from statestore.blobs.filesystem import storage_error
from statestore.cli.layout_files import LAYOUTS, write_layout
from statestore.cli.options import as_json_option
from statestore.cli.progress import progress
from statestore.cli.selecting import Selection, selection_options
from statestore.cli.tallies import exit_code, report
from statestore.entry import Entry
from statestore.errors import InputError, LimitError
from statestore.lanes import LANES, in_lanes
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.transfer import Loaded, Outcome, Source, Tally, usable
from statestore.url import places

#: What is being written, beside the file that it will be.
PART = ".part"


@click.command("export")
@click.argument("file", type=click.Path(allow_dash=True))
@selection_options
@click.option("--decrypt", is_flag=True, help="Write clear what keys= of the store's URL opens.")
@click.option(
    "--layout",
    type=click.Choice(LAYOUTS),
    help="Write one state, which --key names, as another engine reads it.",
)
@click.option(
    "--threads", type=click.IntRange(1, 64), default=LANES, show_default=True, help="Reading."
)
@click.option("--dry-run", is_flag=True, help="Read and check, write nothing.")
@as_json_option
@click.pass_obj
@click.pass_context
def export(
    ctx: click.Context,
    url: str,
    file: str,
    selection: Selection,
    decrypt: bool,
    layout: str | None,
    threads: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write states into one FILE.

    For `import` elsewhere, later, or in a later release: all that may be used, or what the filters
    select, with labels, pins, expiry, hits and cost. Each is checked on the way, and what is
    unsound stays behind (exit code 3). "-" is stdout. While it is written the file is FILE.part:
    the same command, once more, goes on where it was stopped.

    Containers travel as they are: encrypted ones stay so, and need the same key where they arrive.
    With --decrypt anybody can read them who gets the file. Of several tiers, the last is exported.

    \b
    Examples:
      statestore --store ./states export states.rwkvar
      statestore --store ./states export tenant.rwkvar --namespace tenant --newer-than 7d
      statestore --store ./states export - --pinned | ssh host statestore import -
      statestore --store ./states export state.bin --key 3fa9 --layout rwkv-cpp
    """
    place = places(url)[-1]
    if layout is not None:
        with open_store(place, create=False) as store:
            write_layout(store, _only(store, selection), layout, Path(file))
        click.echo(f"written to {file}")
        return
    tally = Tally()
    with open_store(place, create=False) as store:
        source = Source(store, opened=decrypt)
        about = {
            "place": store.backend.url,
            "selection": selection.text,
            "encryption": "removed" if decrypt else "as stored",
        }
        with _target(file, about, dry_run=dry_run) as target:
            _write(store, source, selection, target, tally, lanes=threads, quiet=as_json)
    report(tally, "exported", as_json=as_json, dry_run=dry_run, err=file == "-")
    ctx.exit(exit_code(tally))


def _write(
    store: StateStore,
    source: Source,
    selection: Selection,
    target: Resumed,
    tally: Tally,
    *,
    lanes: int,
    quiet: bool,
) -> None:
    """Append every selected state that is not there yet."""
    total = None if selection.text else store.usage().blob_bytes
    with progress("exporting", total, quiet=quiet) as done:
        wanted = _wanted(store, selection, target, tally, done)
        for loaded in in_lanes(wanted, source.load, lanes):
            kept = _add(target.writer, loaded)
            tally.add(kept, kept.outcome or Outcome.COPIED)
            done(loaded.entry.blob_bytes)


def _add(writer: ArchiveWriter, loaded: Loaded) -> Loaded:
    """Append a state that is sound; what is known of it then."""
    if loaded.blob is not None:
        try:
            writer.add(loaded.entry, [loaded.blob])
        except LimitError as error:  # labels without end: no reader would take them
            return Loaded(loaded.entry, None, f"LimitError: {error}")
    return loaded


def _wanted(
    store: StateStore,
    selection: Selection,
    target: Resumed,
    tally: Tally,
    done: Callable[[int], None],
) -> Iterator[Entry]:
    for entry in selection.entries(store):
        if entry.key.digest in target.digests:
            tally.counts[Outcome.PRESENT] += 1
            done(entry.blob_bytes)
        elif usable(entry, store.now()):
            yield entry


@contextmanager
def _target(file: str, about: dict[str, str], *, dry_run: bool) -> Iterator[Resumed]:
    """The archive to write to; whole under its name once this ends well."""
    if dry_run:
        with Path(os.devnull).open("wb") as nothing:
            yield Resumed(ArchiveWriter.begin(nothing, about), frozenset())
    elif file == "-":
        if sys.stdout.isatty():
            raise InputError("export -: stdout is a terminal; give a FILE, or a pipe")
        writer = ArchiveWriter.begin(sys.stdout.buffer, about)
        yield Resumed(writer, frozenset())
        writer.finish()
    else:
        with _file(Path(file), about) as resumed:
            yield resumed


@contextmanager
def _file(path: Path, about: dict[str, str]) -> Iterator[Resumed]:
    """As `_target`; what was begun under the name with `PART` is gone on with."""
    if not path.name or path.is_dir():
        raise InputError(f"export: {str(path)!r} is a directory: give the name of a file")
    part = path.with_name(path.name + PART)
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is no directory to write {path.name} in: make it first")
    if path.exists():
        raise InputError(f"{path} is there already: remove it, or give another name")
    try:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            resumed = _begun(file, part, about)
            try:
                yield resumed
            except BaseException:
                if not resumed.writer.states:  # nothing that could be gone on with
                    part.unlink()
                raise
            resumed.writer.finish()
            os.fsync(file.fileno())
            part.rename(path)  # still locked: nobody goes on with what is whole
    except OSError as error:
        raise storage_error(error, f"writing {part}") from error


def _begun(file: BinaryIO, part: Path, about: dict[str, str]) -> Resumed:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        moved = not os.path.samestat(os.fstat(file.fileno()), part.stat())
    except (BlockingIOError, FileNotFoundError):
        moved = True
    if moved:
        raise InputError(f"{part} is being written by another process")
    if not file.read(1):
        return Resumed(ArchiveWriter.begin(file, about), frozenset())
    file.seek(0)
    resumed = resume(file, about)
    if resumed is None:
        raise InputError(
            f"{part} is no beginning of this export, but of another one: remove it, or repeat "
            "that one's filters"
        )
    return resumed


def _only(store: StateStore, selection: Selection) -> Entry:
    """The one entry that is selected."""
    found = list(selection.entries(store))[:2]
    if len(found) != 1:
        raise InputError(
            f"--layout writes one state, and {'several are' if found else 'none is'} selected: "
            "name it by --key"
        )
    return found[0]
