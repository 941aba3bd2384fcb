"""How values look to people and to scripts: sizes, ages, tables, JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import click

from statestore.entry import Entry
from statestore.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table


_WIDE: Final = 32  # characters; a longer name does not push the others' values aside


def size(count: int) -> str:
    """Bytes in binary units: ``2.3 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def counted(count: int, thing: str) -> str:
    """A number of things: ``1 state``, ``1,200 states``."""
    return f"{count:,} {thing}" + ("" if count == 1 else "s")


def age(seconds: float) -> str:
    """A duration in its largest unit: ``3 h``."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def worth(score: float, now: float) -> str:
    """A score in words: the moment until which a state is worth its bytes."""
    if score < 0:
        return "a stop that nobody came back to: goes first"
    if score > now:
        return f"worth its bytes for {age(score - now)} more"
    return f"worth its bytes until {age(now - score)} ago"


def milliseconds(seconds: float) -> str:
    """A short time: ``0.004 ms``, ``0.31 ms``, ``12 ms``."""
    ms = 1e3 * seconds
    if ms < 0.01:
        return f"{ms:.3f} ms"
    return f"{ms:.2f} ms" if ms < 1 else f"{ms:.1f} ms" if ms < 10 else f"{ms:,.0f} ms"


def digits(key: str) -> str:
    """The digest's part of a key, which other commands print with its number of tokens.

    Raises `InputError` for an empty one: every key begins so, and a script's variable was not set.
    """
    if not key.strip():
        raise InputError("a key is empty: give its first digits, as `statestore ls` shows them")
    return key.partition("-")[0]


def record(entry: Entry) -> dict[str, object]:
    """An entry for JSON: digests in hex, times in seconds since the epoch, sizes in bytes."""
    return {
        "key": str(entry.key),
        "n_tokens": entry.key.n_tokens,
        "namespace": entry.namespace,
        "fingerprint": entry.fingerprint.hex(),
        "token_digest": entry.token_digest.hex(),
        "schema": entry.schema_id,
        "role": entry.role.value,
        "model": entry.model,
        "blob": entry.blob,
        "blob_bytes": entry.blob_bytes,
        "state_bytes": entry.state_bytes,
        "has_output": entry.has_output,
        "cost_s": entry.cost_s,
        "ancestor_tokens": entry.ancestor_tokens,
        "created_at": entry.created_at,
        "used_at": entry.used_at,
        "hits": entry.hits,
        "score": entry.score,
        "pinned": entry.pinned,
        "expires_at": entry.expires_at,
        "status": entry.status.value,
        "reason": entry.reason,
        "labels": dict(entry.labels),
        "tier": entry.tier,
    }


def emit_json(value: object, *, err: bool = False) -> None:
    """Print `value` as JSON, in ASCII: no locale stands in its way; with `err` to stderr."""
    click.echo(json.dumps(value, indent=2), err=err)


def emit_fields(fields: Mapping[str, object]) -> None:
    """Print names and values, one per line, aligned."""
    width = max((len(name) for name in fields if len(name) <= _WIDE), default=0)
    for name, value in fields.items():
        click.echo(f"{name:<{width}}  {value}")


def emit_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    spare: Collection[str] = (),
) -> None:
    """Print a `table`; without those of the `spare` columns that a terminal has no room for.

    What is left is never cut: half a number is a wrong one.
    """
    from rich.console import Console

    kept = list(rows)
    width = None
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        columns, kept = fitting(columns, kept, width, spare)
    needed = sum(_widths(columns, kept)) + 2 * len(columns) - 2
    Console(width=max(width or 200, needed)).print(table(columns, kept, title))


def fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int, spare: Collection[str]
) -> tuple[list[str], list[Sequence[str]]]:
    """Columns and rows without as many of the `spare` ones, from the first on, as it takes."""
    shown, left = list(columns), list(rows)
    for name in spare:
        if sum(_widths(shown, left)) + 2 * len(shown) - 2 <= width:
            break
        place = shown.index(name)
        shown.pop(place)
        left = [[*row[:place], *row[place + 1 :]] for row in left]
    return shown, left


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    from rich.text import Text

    return [
        max([len(column.lstrip(">")), *(Text.from_ansi(row[place]).cell_len for row in rows)])
        for place, column in enumerate(columns)
    ]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """A table; numbers' columns are marked with a leading ``>`` and align right.

    Cells are plain text, which may be styled by `click.style`: a name in brackets is no markup.
    """
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column.startswith(">")
        drawn.add_column(column.lstrip(">"), justify="right" if right else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text.from_ansi, row))
    return drawn
