"""Command groups that end with one clear line and the exit code of the error tree, and load a
command only when it is called; shared with `rwkv-runtime`.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final

import click
from click.shell_completion import CompletionItem

from statestore.cli.terminal import is_plain
from statestore.errors import BackendError, SettingsError, StateStoreError

#: Of a stdout that goes to a disk which is full, or failing; a closed pipe is click's own matter.
_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class ErrorGroup(click.Group):
    """Turns the project's errors into one line on stderr and the error's own exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        _stand_in()
        if is_plain():  # tables know by themselves
            ctx.color = False
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a locale may lack what a model says
        try:
            return super().invoke(ctx)
        except StateStoreError as error:
            click.secho(f"{ctx.info_name}: {error}", fg="red", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.filename is None and error.errno not in _UNWRITABLE:
                raise
            where = error.filename or "the output"
            click.secho(f"{ctx.info_name}: {where}: {error.strerror}", fg="red", err=True)
            if error.filename is None:
                _discard_output()
            ctx.exit(BackendError.exit_code)
        except KeyboardInterrupt:
            click.echo(f"{ctx.info_name}: stopped", err=True)
            ctx.exit(130)


def _stand_in() -> None:
    """A stream that the caller has closed (``>&-``) leads nowhere, and no file gets its number."""
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _discard_output() -> None:
    """What is still buffered goes nowhere: the interpreter's end shall not try again."""
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())


@dataclass(frozen=True, slots=True)
class Line:
    """One command in a group's help, and where it is defined."""

    name: str
    place: str  # "package.module:attribute"
    summary: str  # the first sentence of its help
    section: str
    extra: str = ""  # what it needs beyond the package itself

    def load(self) -> click.Command:
        """Import the command.

        Raises:
            SettingsError: what it needs is not installed.
        """
        module, _, attribute = self.place.partition(":")
        try:
            command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not self.extra or (error.name or "").startswith(("statestore", "rwkv_runtime")):
                raise
            raise SettingsError(
                f"{self.name} needs {error.name}: pip install 'rwkv-statestore[{self.extra}]'"
            ) from error
        assert isinstance(command, click.Command)
        return command


class LazyGroup(ErrorGroup):
    """Commands from a table: `--help` and completion of a command's name import none of them."""

    def __init__(self, *arguments: object, lines: Iterable[Line] = (), **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self._lines = {line.name: line for line in lines}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the table's order."""
        return list(self._lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, unless there is none of that name.

        Raises:
            SettingsError: what it needs is not installed; completion finds none then.
        """
        line = self._lines.get(cmd_name)
        try:
            return None if line is None else line.load()
        except SettingsError:
            if ctx.resilient_parsing:
                return None
            raise

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names from the table, and this group's options."""
        lines = [line for line in self._lines.values() if line.name.startswith(incomplete)]
        names = [CompletionItem(line.name, help=line.summary) for line in lines]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table, section by section."""
        width = max(map(len, self._lines), default=0)
        for section in dict.fromkeys(line.section for line in self._lines.values()):
            lines = [line for line in self._lines.values() if line.section == section]
            with formatter.section(section):
                formatter.write_dl([(line.name.ljust(width), line.summary) for line in lines])
