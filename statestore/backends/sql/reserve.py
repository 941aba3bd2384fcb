"""Space that is kept for the moment when a disk has none left.

SQLite needs room to write down that something goes, and to be opened at all. On a full disk nothing
could be removed then, and nothing looked at. So a store's directory holds a file of `SIZE_BYTES`
that a removal, or opening the store, gives up when there is no space, and that is made anew once
there is. It is made where the disk has `ROOMY` times as much to spare: a smaller one has none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from statestore.errors import FullError

T = TypeVar("T")

SIZE_BYTES: Final = 1 << 20  # 1 MiB
ROOMY: Final = 16


class Reserve:
    """The file at `path`. Many processes may share it. Nothing here raises."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._given_up = False

    def give_up(self) -> bool:
        """Let its space go to whoever needs it; ``False``: it had gone already."""
        try:
            self._path.unlink()
        except OSError:
            return False
        self._given_up = True
        return True

    def keep(self) -> None:
        """Make it, unless it is there; on a disk that is not roomy only what was given up here."""
        with suppress(OSError, AttributeError):  # the latter: a system that cannot set space aside
            if not self._path.exists() and (self._given_up or self._is_roomy()):
                self._make()
                self._given_up = False

    def removing(self, remove: Callable[[], T]) -> T:
        """The result of `remove`; where there is no space, of another try with the reserve's."""
        try:
            return remove()
        except FullError:
            if not self.give_up():
                raise
            return remove()

    def removing_many(
        self, remove: Callable[[int], Sequence[T]], limit: int
    ) -> Iterator[Sequence[T]]:
        """What ``remove(count)`` gives until it gives nothing or `limit` are gone.

        All at once; where there is no space for that, with the reserve's, a few and then more: the
        caller gives back what a few took up before it asks for the next ones.
        """
        gone, count = 0, limit
        while gone < limit:
            try:
                page = remove(min(count, limit - gone))
            except FullError:
                if gone:
                    return
                if not self.give_up():
                    raise
                count = 1
                continue
            yield page
            if not page or count == limit:
                return
            gone, count = gone + len(page), min(4 * count, limit - 1)

    def _is_roomy(self) -> bool:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize >= ROOMY * SIZE_BYTES

    def _make(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SIZE_BYTES)
        except BaseException:
            self._path.unlink()
            raise
        finally:
            os.close(descriptor)
