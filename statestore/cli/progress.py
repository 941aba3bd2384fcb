"""A bar of bytes that people see on stderr and scripts never do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(text: str, total_bytes: int | None, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Yield a callback that is told how many bytes are done more.

    Nothing is drawn where stderr is no terminal, or with `quiet`. Without a total there is a pace,
    and no end in sight.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total_bytes)
        yield lambda count: bar.advance(task, count)
