"""How values look to people and to scripts: sizes, ages, tables, JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from statestore.entry import Entry

if TYPE_CHECKING:
    from rich.table import Table


def size(count: int) -> str:
    """Bytes in binary units: ``2.3 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(seconds: float) -> str:
    """A duration in its largest unit: ``3 h``."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def milliseconds(seconds: float) -> str:
    """A short time: ``0.31 ms``, ``12 ms``."""
    ms = 1e3 * seconds
    return f"{ms:.2f} ms" if ms < 1 else f"{ms:.1f} ms" if ms < 10 else f"{ms:,.0f} ms"


def digits(key: str) -> str:
    """The digest's part of a key, which other commands print with its number of tokens."""
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
    width = max(map(len, fields))
    for name, value in fields.items():
        click.echo(f"{name:<{width}}  {value}")


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a `table`."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table(columns, rows, title))


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
