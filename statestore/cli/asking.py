"""The question ahead of what cannot be undone."""

from __future__ import annotations

import sys

import click

from statestore.errors import InputError


def agree(question: str, *, yes: bool) -> None:
    """Go on if the person at the terminal says so, or has said `yes` already.

    Raises:
        InputError: nobody can be asked.
        KeyboardInterrupt: the answer was Ctrl-C.
        click.Abort: it was no, or there was none.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{question} There is no terminal to ask on: say --yes")
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # which click takes for a no
            click.echo(err=True)
            raise KeyboardInterrupt from None
        raise
