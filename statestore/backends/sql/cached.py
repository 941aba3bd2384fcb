"""Blobs of a directory that this machine has in memory: they are read without waiting for a disk
or a server, so a deadline is kept on the caller's thread.

On a local disk alone: there a file is opened as the catalog of a file store is, and its bytes are
asked of the system's cache. Over a network opening it may take as long as the server does.
"""

from __future__ import annotations

from pathlib import Path

from statestore.backends.base import NotAtHandError
from statestore.backends.sql.mounts import LOCAL, file_system
from statestore.blobs.base import NotCachedError
from statestore.blobs.filesystem import FilesystemBlobs


class CachedBlobs:
    """Those of `blobs`, which lie in the directory `root`."""

    def __init__(self, blobs: FilesystemBlobs, root: Path) -> None:
        self._blobs = blobs
        self._root = root
        self._is_local: bool | None = None  # not known before something was read from there

    def look(self) -> None:
        """Something was read just now: the directory is mounted, and can be looked at."""
        if self._is_local is None:
            self._is_local = file_system(self._root) in LOCAL

    def get(self, name: str, limit_bytes: int) -> memoryview | None:
        """As the blobs'. Raises `NotAtHandError` where it would have to be waited for."""
        if not self._is_local:
            raise NotAtHandError
        try:
            return self._blobs.get_cached(name, limit_bytes=limit_bytes)
        except NotCachedError:
            raise NotAtHandError from None
