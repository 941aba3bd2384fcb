"""The table of a listing: printed as it comes, in constant memory, as wide as the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

import click

from statestore.cli.render import age, size
from statestore.entry import Entry

_FIRST: Final = 200  # rows that decide how wide columns are
_WIDEST: Final = 48  # of one column


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its heading, what it says of an entry at a moment, and its weight."""

    name: str
    says: Callable[[Entry, float], str]
    rank: int  # the highest go first where the terminal is narrow
    right: bool = False


def _status(entry: Entry, now: float) -> str:
    expired = entry.expires_at is not None and entry.expires_at <= now
    words = ["expired" if expired else entry.status.value]
    return ", ".join([*words, "pinned"] if entry.pinned else words)


def _labels(entry: Entry, now: float) -> str:  # noqa: ARG001
    return " ".join(f"{name}={value}" if value else name for name, value in entry.labels.items())


COLUMNS: Final = (
    Column("key", lambda entry, _: entry.key.hex[:16], 0),
    Column("tokens", lambda entry, _: str(entry.key.n_tokens), 1, right=True),
    Column("role", lambda entry, _: entry.role.value, 6),
    Column("model", lambda entry, _: entry.model or entry.fingerprint.hex()[:12], 4),
    Column("namespace", lambda entry, _: entry.namespace, 5),
    Column("size", lambda entry, _: size(entry.blob_bytes), 1, right=True),
    Column("hits", lambda entry, _: str(entry.hits), 3, right=True),
    Column("saved", lambda entry, _: age(entry.hits * entry.cost_s), 8, right=True),
    Column("stored", lambda entry, now: f"{age(now - entry.created_at)} ago", 7, right=True),
    Column("used", lambda entry, now: f"{age(now - entry.used_at)} ago", 2, right=True),
    Column("status", _status, 2),
    Column("labels", _labels, 9),
)


def emit_listing(entries: Iterable[Entry], now: float) -> int:
    """Print a row for each entry; how many there were."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    stream = iter(entries)
    first = list(islice(stream, _FIRST))
    if not first:
        return 0
    columns, widths = _fitting(first, now, width)
    heading = _line([column.name for column in columns], columns, widths)
    click.secho(heading, bold=True)
    count = 0
    for cells in _rows(chain(first, stream), columns, now):
        click.echo(_line(cells, columns, widths))
        count += 1
    return count


def plain(text: str) -> str:
    """`text` without what would move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _rows(entries: Iterable[Entry], columns: Sequence[Column], now: float) -> Iterator[list[str]]:
    for entry in entries:
        yield [_cut(plain(column.says(entry, now))) for column in columns]


def _fitting(
    first: Sequence[Entry], now: float, width: int | None
) -> tuple[list[Column], list[int]]:
    """The columns that have a place, and their widths."""
    from rich.cells import cell_len

    rows = list(_rows(first, COLUMNS, now))
    needs = {
        column.name: max(len(column.name), *(cell_len(row[place]) for row in rows))
        for place, column in enumerate(COLUMNS)
    }
    shown = list(COLUMNS)
    if not any(entry.labels for entry in first):
        shown = [column for column in shown if column.name != "labels"]
    while width is not None and sum(needs[c.name] + 2 for c in shown) - 2 > width:
        if len(shown) == 1:
            break
        shown.remove(max(shown, key=lambda column: column.rank))
    return shown, [needs[column.name] for column in shown]


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    from rich.cells import cell_len

    padded = []
    for cell, column, width in zip(cells, columns, widths, strict=True):
        space = " " * max(0, width - cell_len(cell))
        padded.append(space + cell if column.right else cell + space)
    return "  ".join(padded).rstrip()


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"
