"""A progress bar that people see on stderr and scripts never do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bar(text: str, unit: str = "tokens") -> Iterator[Callable[[int, int], None]]:
    """Yield a callback ``(done, total)``: the first call draws a bar with pace and time left, the
    one that is done with all takes it away, so that answers may be printed between two readings.

    Nothing is drawn where stderr is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    bar = _Bar(text, unit)
    try:
        yield bar.report
    finally:
        bar.go()


class _Bar:
    """A bar that is there while there is something to do."""

    def __init__(self, text: str, unit: str) -> None:
        self._text = text
        self._unit = unit
        self._drawn: Progress | None = None

    def report(self, done: int, total: int) -> None:
        if done >= total:
            self.go()
            return
        if self._drawn is None:
            self._drawn = _drawn(self._text)
        speed = self._drawn.tasks[0].speed
        pace = f"{speed:,.0f} {self._unit}/s" if speed else ""
        task = self._drawn.task_ids[0]
        self._drawn.update(task, completed=done, total=total, pace=pace)

    def go(self) -> None:
        drawn, self._drawn = self._drawn, None
        if drawn is not None:
            drawn.stop()


def _drawn(text: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    drawn = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # what is printed there is for whoever reads it
    )
    drawn.add_task(text, total=None, pace="")
    drawn.start()
    return drawn
