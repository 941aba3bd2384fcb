"""A progress bar that people see on stderr and scripts never do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(text: str, unit: str = "tokens") -> Iterator[Callable[[int, int], None]]:
    """Yield a callback ``(done, total)``; a bar with pace and time left appears at its first call.

    Nothing is drawn where stderr is no terminal.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(text, total=None, visible=False, pace="")

        def report(done: int, total: int) -> None:
            speed = bar.tasks[0].speed
            pace = f"{speed:,.0f} {unit}/s" if speed else ""
            bar.update(task, completed=done, total=total, visible=True, pace=pace)

        yield report
