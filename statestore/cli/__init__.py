"""The `statestore` command: look at a store, check it, tidy it. Never loads torch."""

from statestore.cli.main import main

__all__ = ["main"]
