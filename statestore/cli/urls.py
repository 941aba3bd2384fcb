"""A store's URL on the command line, as a shell completes it."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import CompletionItem

#: How a store's URL begins; `settings` opens these.
SCHEMES: Final = (
    "file:///",
    "memory:",
    "postgresql://",
    "redis://",
    "rediss://",
    "redis+sentinel://",
    "redis+cluster://",
    "unix:///",
)


class StoreUrl(click.types.StringParamType):
    """A store's URL: any text; a shell offers the schemes, and the files that it knows."""

    name = "url"

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Schemes that begin so; else directories."""
        found = [CompletionItem(scheme) for scheme in SCHEMES if scheme.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="dir")]
