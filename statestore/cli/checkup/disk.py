"""A disk: room against the budget, how long a sync takes, who else can read, which file system."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from statestore.backends.sql.mounts import NETWORK, file_system
from statestore.cli.checkup.finding import Finding
from statestore.cli.checkup.settings import open_to_others
from statestore.cli.plain import nameless
from statestore.cli.render import milliseconds, size
from statestore.errors import FullError, UnavailableError

_SYNCS: Final = 5
_SLOW_SYNC_S: Final = 0.05
_LOW_SHARE: Final = 0.05  # of the disk
_LOW_BYTES: Final = 1 << 30  # 1 GiB
_NONE_BYTES: Final = 64 << 20  # 64 MiB: less than two large states


def disk_findings(
    directory: Path, budget_bytes: int | None, used_bytes: int, *, holds_catalog: bool
) -> Iterator[Finding]:
    """What there is to say of the disk below `directory`."""
    yield _room(directory, budget_bytes, used_bytes)
    yield _sync(directory)
    if mode := open_to_others(directory):
        yield Finding.doubtful(
            "access",
            f"{directory} is open to others (mode {mode}): states tell what was read",
            f"chmod 700 {directory}, unless servers share it through their group",
        )
    kind = file_system(directory)
    if holds_catalog and kind in NETWORK:
        yield Finding.doubtful(
            "disk",
            f"{directory} is on a network's file system ({kind}), where SQLite's locks fail",
            "keep a file store on a disk of this machine; share states by postgresql:// or redis://",
            file_system=kind,
        )


def _room(directory: Path, budget_bytes: int | None, used_bytes: int) -> Finding:
    disk = shutil.disk_usage(directory)
    text = f"{size(disk.free)} of {size(disk.total)} are free"
    facts = {"free_bytes": disk.free, "total_bytes": disk.total}
    if disk.free < _NONE_BYTES:
        return Finding.bad(
            "disk", FullError(f"{directory}: {text}"), "free some, or `statestore evict --to SIZE`"
        )
    if budget_bytes is not None and budget_bytes - used_bytes > disk.free:
        fits = size(used_bytes + int(0.9 * disk.free))
        return Finding.doubtful(
            "disk",
            f"{text}: the disk is full before the budget of {size(budget_bytes)} is",
            f"lower the budget to {fits}",
            **facts,
        )
    if disk.free < max(_LOW_BYTES, _LOW_SHARE * disk.total) and budget_bytes is None:
        return Finding.doubtful("disk", text, "free some, or give the URL a budget=", **facts)
    return Finding.good("disk", text, **facts)


def _sync(directory: Path) -> Finding:
    try:
        with nameless(directory) as file:
            taken = [_sync_once(file) for _ in range(_SYNCS)]
    except OSError as error:
        return Finding.bad(
            "sync",
            UnavailableError(f"{directory} cannot be written: {error.strerror}"),
            "look at the disk, and at who owns the directory",
        )
    median_s = statistics.median(taken)
    text = f"a sync takes {milliseconds(median_s)}"
    if median_s > _SLOW_SYNC_S:
        return Finding.doubtful(
            "sync", text, "each put waits for it: a faster disk helps", seconds=median_s
        )
    return Finding.good("sync", text, seconds=median_s)


def _sync_once(file: BinaryIO) -> float:
    file.write(bytes(4096))
    begun = time.perf_counter()
    os.fsync(file.fileno())
    return time.perf_counter() - begun
