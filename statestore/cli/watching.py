"""Looking again and again: a live table on a terminal, a line each time elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import click

from statestore.cli.render import fitting, table
from statestore.cli.terminal import is_dumb
from statestore.errors import BackendError

INTERVAL_S: Final = 2.0  # between two looks, by default


@dataclass(frozen=True, slots=True)
class Glance:
    """What is seen at one moment."""

    record: Mapping[str, object]  # for JSON
    counts: Mapping[str, int]  # the few numbers of a line
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    spare: Sequence[str]  # columns that a narrow terminal goes without


def watch(look: Callable[[], Glance], interval_s: float, *, as_json: bool) -> None:
    """Show what `look` sees every `interval_s` seconds, until Ctrl-C.

    A place that fails for a while is said to, and looked at again. With `as_json`, one object a
    line.
    """
    try:
        if as_json:
            for moment in _moments(interval_s):
                _print_json(look, moment)
        elif sys.stdout.isatty() and not is_dumb():
            _live(look, interval_s)
        else:
            _lines(look, interval_s)
    except KeyboardInterrupt:
        return


def _moments(interval_s: float) -> Iterator[float]:
    """The time, now and again and again; `interval_s` are between two looks, however long one
    takes.
    """
    while True:
        yield time.time()
        time.sleep(interval_s)


def _print_json(look: Callable[[], Glance], moment: float) -> None:
    try:
        shown = {"at": moment, **look().record}
    except BackendError as error:
        shown = {"at": moment, "error": str(error)}
    click.echo(json.dumps(shown))


def _lines(look: Callable[[], Glance], interval_s: float) -> None:
    before: Glance | None = None
    for moment in _moments(interval_s):
        clock = time.strftime("%H:%M:%S", time.localtime(moment))
        try:
            now = look()
        except BackendError as error:
            click.echo(f"{clock}  {error}")
            continue
        click.echo(f"{clock}  {_summary(now, before)}")
        before = now


def _live(look: Callable[[], Glance], interval_s: float) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    before: Glance | None = None
    with Live(auto_refresh=False, screen=False) as live:
        for moment in _moments(interval_s):
            clock = time.strftime("%H:%M:%S", time.localtime(moment))
            try:
                now = look()
            except BackendError as error:
                live.update(Text(f"{clock}  {error}", style="red"), refresh=True)
                continue
            line = Text(f"{clock}  {_summary(now, before)}", style="bold")
            fits = fitting(now.columns, now.rows, live.console.width, now.spare)
            live.update(Group(line, Text(), table(*fits)), refresh=True)
            before = now


def _summary(now: Glance, before: Glance | None) -> str:
    """``entries 12 (+2)``: each count, and its change since the last look."""
    parts = []
    for name, count in now.counts.items():
        change = count - before.counts.get(name, 0) if before is not None else 0
        parts.append(f"{name} {count:,}" + (f" ({change:+,})" if change else ""))
    return "  ".join(parts)
