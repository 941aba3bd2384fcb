"""The settings: where the store's URL came from, and what may be mistaken in the rest."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from statestore.cli.checkup.finding import Finding
from statestore.config import Config
from statestore.url import places, redacted


def settings_findings(config: Config) -> Iterator[Finding]:
    """What is configured, and from where."""
    url = config.store.url
    yield Finding.good(
        "settings",
        f"the store is {redacted(url)}, from {config.origin('store.url')}",
        url=redacted(url),
        origin=str(config.origin("store.url")),
        file=None if config.file is None else str(config.file),
    )
    for name in config.strays:
        yield Finding.doubtful(
            "settings",
            f"{name} is set in the environment, but is no setting",
            "see `statestore config show` for their names",
        )
    secrets = config.store.salts or any(redacted(text) != text for text in places(url))
    if config.file is not None and secrets and (mode := open_to_others(config.file)):
        yield Finding.doubtful(
            "settings",
            f"{config.file} holds secrets and can be read by others (mode {mode})",
            f"chmod 600 {config.file}",
        )
    if places(url)[-1].startswith("memory:"):
        yield Finding.doubtful(
            "settings",
            "nothing outlives the process: the last place is memory",
            "put a directory or a server behind it: 'memory: ./states'",
        )


def open_to_others(path: Path) -> str:
    """The mode of a file that its group or everybody can read or write, else ``""``."""
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116 - a Path's says the same
    except OSError:
        return ""
    return f"{mode:04o}" if mode & 0o077 else ""
