"""Large buffers that are used again, so that their pages need not be made anew.

The first touch of fresh memory costs as much as reading a file into it (34.6 MB: 9 ms), and an
allocator gives blocks beyond 32 MiB back to the system at once. `take` hands out a block that
nobody looks at any more: a block returns by itself when the last view of what was handed out is
gone. What is kept idle is bounded by `KEPT_BYTES`.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes; what vector instructions and PyTorch's own tensors have
KEPT_BYTES = 256 << 20  # 256 MiB: what idles
LEAST_BYTES = 1 << 20  # 1 MiB: an allocator keeps smaller blocks by itself

_Block: TypeAlias = NDArray[np.uint8]


class Pool:
    """Blocks in use, by the object that was handed out, and idle ones. Safe for threads."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._idle: list[_Block] = []
        self._lent: dict[int, tuple[weakref.ref[Any], _Block]] = {}
        self._reset_lock()
        os.register_at_fork(after_in_child=self._reset_lock)

    @property
    def idle_bytes(self) -> int:
        """What is kept for the next ones."""
        return sum(block.nbytes for block in tuple(self._idle))

    def take(self, size: int) -> memoryview:
        """`size` writable bytes of undefined content, which begin at a multiple of `ALIGNMENT`.

        They belong to the caller for as long as any view of them lives.
        """
        if size < LEAST_BYTES:
            return _aligned(np.empty(size + ALIGNMENT, np.uint8), size).data
        with self._lock:
            fitting = [block for block in self._idle if size <= _room(block) <= 2 * size]
            block = min(fitting, key=_room, default=None)
            if block is not None:
                self._idle = [other for other in self._idle if other is not block]
        if block is None:
            block = np.empty(size + ALIGNMENT, np.uint8)
        lent = _aligned(block, size)
        name = id(lent)
        gone = weakref.ref(lent, lambda _: self._back(name))
        with self._lock:
            self._lent[name] = gone, block
        return lent.data

    def _back(self, name: int) -> None:
        """The last view has gone, in whichever thread that was."""
        with self._lock:
            _, block = self._lent.pop(name)
            kept, total = [block], block.nbytes
            for other in self._idle:  # newest first: sizes of the past go
                total += other.nbytes
                if total <= self._kept_bytes:
                    kept.append(other)
            self._idle = kept if block.nbytes <= self._kept_bytes else self._idle

    def _reset_lock(self) -> None:
        # Reentrant: a collection of garbage may give a block back in the midst of `take`.
        self._lock = threading.RLock()


def _room(block: _Block) -> int:
    return block.nbytes - ALIGNMENT


def _aligned(block: _Block, size: int) -> _Block:
    skip = -block.ctypes.data % ALIGNMENT
    return block[skip : skip + size]


_POOL = Pool()
take = _POOL.take
