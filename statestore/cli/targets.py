"""The store that states are brought to."""

from __future__ import annotations

from pathlib import Path

from statestore.errors import InputError
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.url import StoreURL, places, redacted


def open_target(url: str, *, dry_run: bool) -> StateStore:
    """The last tier at `url`; a dry run makes no store, and finds nothing where none is.

    Raises `InputError` for a place that ends with this process.
    """
    place = places(url)[-1]
    if dry_run:
        parsed = StoreURL.parse(place)
        if parsed.scheme == "file" and not Path(parsed.path).exists():
            return open_store("memory:")
    if place.startswith("memory:"):
        raise InputError(f"{redacted(place)} ends with this command: give a place that lasts")
    return open_store(place, create=not dry_run)
