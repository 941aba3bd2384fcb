"""A command group that ends with one clear line and the exit code of the error tree; shared with
`rwkv-runtime`.
"""

from __future__ import annotations

import io
import sys

import click

from statestore.errors import StateStoreError


class ErrorGroup(click.Group):
    """Turns the project's errors into one line on stderr and the error's own exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the chosen command."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a locale may lack what a model says
        try:
            return super().invoke(ctx)
        except StateStoreError as error:
            click.secho(f"{ctx.info_name}: {error}", fg="red", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo(f"{ctx.info_name}: stopped", err=True)
            ctx.exit(130)
