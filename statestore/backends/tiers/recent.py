"""Blobs just read from further tiers, until a hit wants them copied nearer.

A forked child begins without any.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from statestore.forking import renew_in_child

RECENT_BYTES: Final = 64 << 20  # in all


class Recent:
    """The newest blobs that were read from further tiers, until a hit wants them copied."""

    def __init__(self) -> None:
        self.renew()
        renew_in_child(self)

    def renew(self) -> None:
        """Forget them: in a forked child the lock may be held by a thread that is not there."""
        self._lock = threading.Lock()
        self._blobs: OrderedDict[str, memoryview] = OrderedDict()
        self._held_bytes = 0

    def keep(self, name: str, blob: memoryview) -> None:
        """Keep one; the oldest go."""
        with self._lock:
            self._drop(name)
            self._blobs[name] = blob
            self._held_bytes += len(blob)
            while self._held_bytes > RECENT_BYTES:
                self._drop(next(iter(self._blobs)))

    def take(self, name: str) -> memoryview | None:
        """One that is still kept; it is not kept any longer."""
        with self._lock:
            return self._drop(name)

    def _drop(self, name: str) -> memoryview | None:
        blob = self._blobs.pop(name, None)
        self._held_bytes -= 0 if blob is None else len(blob)
        return blob
