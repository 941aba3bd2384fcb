"""What an export, import or copy says when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import click

from statestore.cli.render import emit_json, size
from statestore.errors import ContainerError, FullError
from statestore.transfer import Outcome, Tally

_WORDS: Final = {
    Outcome.COPIED: "{verb}",
    Outcome.PRESENT: "there already",
    Outcome.DAMAGED: "unsound, left behind",
    Outcome.GONE: "removed meanwhile",
    Outcome.NO_ROOM: "left for want of room",
}


def report(
    tally: Tally,
    verb: str,
    *,
    as_json: bool,
    dry_run: bool = False,
    err: bool = False,
    broken: str = "",
    more: Mapping[str, object] | None = None,
) -> None:
    """Print the tally; `broken` says why not all could be read; to stderr with `err`."""
    problems = [{"key": key, "problem": problem} for key, problem in tally.problems]
    if as_json:
        counts = {outcome.value: count for outcome, count in tally.counts.items()}
        said = {**(more or {}), **counts, "blob_bytes": tally.blob_bytes, "unsound": problems}
        emit_json({**said, "dry_run": dry_run, "broken": broken}, err=err)
        return
    for problem in problems:
        click.echo(f"{problem['key']}  {problem['problem']}", err=True)
    click.echo(_sentence(tally, f"would be {verb}" if dry_run else verb), err=err)
    if broken:
        click.secho(broken, fg="red", err=True)


def exit_code(tally: Tally, broken: str = "") -> int:
    """How a command ends: 3 where something is unsound, 4 where the place is full."""
    if broken or tally.problems:
        return ContainerError.exit_code
    return FullError.exit_code if tally.counts[Outcome.NO_ROOM] else 0


def _sentence(tally: Tally, verb: str) -> str:
    parts = [
        f"{count} {_WORDS[outcome].format(verb=verb)}"
        for outcome, count in tally.counts.items()
        if count or outcome is Outcome.COPIED
    ]
    return f"{', '.join(parts)} ({size(tally.blob_bytes)})"
