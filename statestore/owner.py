"""Who holds a lease: a name that tells those on the same machine whether its process still lives.

    <boot>.<namespace of process ids>/<process id>/<random>

A process that was killed cannot give its lease back; on another machine its time has to run out.
Here the kernel knows better. The boot's id and the namespace keep machines and containers apart
that count their processes alike. A process id that was given out again only looks alive.
"""

from __future__ import annotations

import functools
import os
import secrets
from pathlib import Path


def new_owner() -> str:
    """A name that nobody else has, of this process."""
    return f"{_place(os.getpid())}/{os.getpid()}/{secrets.token_hex(8)}"


def is_beside(owner: str) -> bool:
    """Whether `owner` is known to be on this machine, or in this container."""
    place = owner.partition("/")[0]
    return bool(place) and place == _place(os.getpid())


def has_ended(owner: str) -> bool:
    """Whether `owner` is known to live no more; ``False`` where that cannot be told."""
    number = owner.partition("/")[2].partition("/")[0]
    if not is_beside(owner) or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's: it lives
        return False
    return False


@functools.lru_cache(maxsize=1)
def _place(_process: int) -> str:
    """Where this process's id means something; ``""`` where the system does not say."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""
