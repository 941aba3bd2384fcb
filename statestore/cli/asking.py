"""The question ahead of what cannot be undone."""

from __future__ import annotations

import sys

import click

from statestore.errors import InputError


def agree(question: str, *, yes: bool) -> None:
    """Go on if the person at the terminal says so, or has said `yes` already.

    Raises `InputError` where nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"{question} There is no terminal to ask on: say --yes")
    click.confirm(question, abort=True, err=True)
