"""Large buffers that are used again, so that their pages need not be made anew.

The first touch of fresh memory costs as much as reading a file into it (34.6 MB: 9 ms), and an
allocator gives blocks beyond 32 MiB back to the system at once. `take` hands out a block that
nobody looks at any more: a block returns by itself when the last view of what was handed out is
gone. What is kept idle is bounded by `KEPT_BYTES`.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeAlias

import numpy as np

ALIGNMENT = 64  # bytes; what vector instructions and PyTorch's own tensors have
KEPT_BYTES = 256 << 20  # 256 MiB: what idles
LEAST_BYTES = 1 << 20  # 1 MiB: an allocator keeps smaller blocks by itself

#: Memory that begins at a multiple of `ALIGNMENT`.
_Block: TypeAlias = memoryview


class Pool:
    """Blocks in use, by the object that was handed out, and idle ones.

    Threads, signal handlers and the collector's finalisers may come in the midst of any call, and a
    fork too. There is no lock that they could find held: a block changes hands by one step of a
    dict, which gives it to one taker alone.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._idle: dict[int, _Block] = {}  # by id, what came back last at the end
        self._lent: dict[int, tuple[weakref.ref[Any], _Block]] = {}

    @property
    def idle_bytes(self) -> int:
        """What is kept for the next ones."""
        return sum(map(len, list(self._idle.values())))

    def take(self, size: int) -> memoryview:
        """`size` writable bytes of undefined content, which begin at a multiple of `ALIGNMENT`.

        They belong to the caller for as long as any view of them lives.
        """
        if size < LEAST_BYTES:
            return _new(size)
        block = self._idle_block(size) or _new(size)
        # Not a slice: NumPy gives slices of a slice the block itself as their base, past this one.
        lent = np.frombuffer(block, np.uint8, size)
        gone = weakref.ref(lent, self._back)
        self._lent[id(gone)] = gone, block
        return lent.data

    def _idle_block(self, size: int) -> _Block | None:
        """Of those that fit the last that came back, and it is nobody else's any more: to read into
        what the processor's caches have forgotten takes half as long again.
        """
        for block in reversed(list(self._idle.values())):
            fits = size <= len(block) <= 2 * size
            if fits and self._idle.pop(id(block), None) is not None:  # else another has taken it
                return block
        return None

    def _back(self, gone: weakref.ref[Any]) -> None:
        """The last view has gone, in whichever thread that was."""
        lent = self._lent.pop(id(gone), None)
        if lent is None or len(lent[1]) > self._kept_bytes:
            return  # the former where a Ctrl-C came in the midst of `take`
        block = lent[1]
        self._idle[id(block)] = block
        excess = self.idle_bytes - self._kept_bytes
        for oldest in list(self._idle.values()):  # sizes of the past go
            if excess <= 0:
                break
            if self._idle.pop(id(oldest), None) is not None:
                excess -= len(oldest)


def _new(size: int) -> _Block:
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory.data[start : start + size]


_POOL = Pool()
take = _POOL.take
