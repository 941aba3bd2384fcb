"""Blobs taken away once no entry names them. What cannot be taken away is left to a sweep: the
entry's removal has happened, and nobody's call fails for a file.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from statestore.blobs.base import BlobStore, RemovesMany
from statestore.errors import BackendError, InputError

log = logging.getLogger(__name__)

_PAGE: Final = 256  # of one call


class Unlinker:
    """Unlinks blobs of `blobs`."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    @property
    def many(self) -> bool:
        """Whether many cost hardly more than one."""
        return isinstance(self._blobs, RemovesMany)

    def one(self, blob: str) -> bool:
        """Unlink a blob; ``False``: it was not there, or is left to a sweep."""
        try:
            return self._blobs.delete(blob)
        except (BackendError, InputError) as error:  # the latter: a damaged row names no blob
            log.warning("blob %s is left to a sweep: %s", blob, error)
            return False

    def all(self, blobs: Sequence[tuple[str, int]]) -> list[int]:
        """Unlink blobs, given with their sizes; the sizes of those that were removed.

        Where it is done many at a time, the first failure ends it: a silent server shall not be
        waited for once for each.
        """
        if not isinstance(self._blobs, RemovesMany):
            return [size for name, size in blobs if self.one(name)]
        removed: list[int] = []
        for first in range(0, len(blobs), _PAGE):
            page = blobs[first : first + _PAGE]
            try:
                self._blobs.delete_many([name for name, _ in page])
            except BackendError as error:
                log.warning("%d blobs are left to a sweep: %s", len(blobs) - first, error)
                break
            removed += [size for _, size in page]
        return removed
