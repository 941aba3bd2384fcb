"""Which file system a directory lies on, as far as Linux tells."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: Kinds that several hosts see: there SQLite's locks and its shared memory fail between them.
NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph"}
)

#: Kinds of this machine's own disks and memory, whose reads the system answers from its cache.
LOCAL: Final = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"})

_MOUNTS: Final = Path("/proc/self/mounts")


def file_system(directory: Path, mounts: Path = _MOUNTS) -> str:
    """Its kind; ``""`` where that cannot be told.

    Args:
        directory: need not be there.
        mounts: what is mounted where, a line each: device, point, kind.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        place = directory.resolve()
    except (OSError, ValueError):  # the latter: no file system has such a name
        return ""
    found = [line.split(" ")[1:3] for line in lines if line.count(" ") > 2]
    over = [(point, kind) for point, kind in found if place.is_relative_to(_spelt(point))]
    # of those mounted over each other at one point the last one is seen
    return max(reversed(over), key=lambda pair: len(pair[0]))[1] if over else ""


def _spelt(point: str) -> str:
    """A mount's point without its escapes, three octal digits each."""
    first, *rest = point.split("\\")
    return first + "".join(chr(int(piece[:3], 8)) + piece[3:] for piece in rest)
