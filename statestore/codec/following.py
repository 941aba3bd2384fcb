"""Decoding a container while it arrives.

In the time that a reader would wait for the next bytes, frames that have come whole are checked and
decoded; the rest as ever, when all is there. That is the whole difference: what the blob is worth
is said by reading it as ever once it is whole, and frames count as decoded only if its header says
of them what it said before. Anything out of the ordinary on the way, from a foreign header to a
damaged frame, ends the following, and the blob is decoded as if nobody had followed: with the same
state or the same error.

Uncompressed containers are not followed, since their tensors are the blob's own memory, nor are
encrypted ones.
"""

from __future__ import annotations

from collections.abc import Callable

from statestore.codec.container import (
    Unpacking,
    decode,
    is_packed,
    read_start,
    read_whole,
    threads_for,
)
from statestore.codec.header import Header
from statestore.codec.limits import Limits
from statestore.codec.parallel import for_each
from statestore.errors import ContainerError, TruncatedError
from statestore.schema import State

FOLLOWED_BYTES = 1 << 20  # 1 MiB: of less there is no frame that comes before the others


class Following:
    """A `Follower` of one container. For one thread.

    Args:
        size: the container's, in bytes.
        limits: the largest container that is read.
    """

    def __init__(self, size: int, limits: Limits) -> None:
        self._size = size
        self._limits = limits
        self._buffer = memoryview(b"")
        self.begin(self._buffer)

    @property
    def decoded(self) -> int:
        """How many frames were decoded on the way."""
        return self._next

    def begin(self, buffer: memoryview) -> None:
        """Forget the last try."""
        self._buffer = buffer
        self._came = 0
        self._over = False
        self._header: Header | None = None
        self._unpacking: Unpacking | None = None
        self._work: Callable[[int], None] | None = None
        self._next = 0  # the first frame that is not decoded

    def came(self, count: int) -> None:
        """So many bytes of the container are there."""
        self._came = count

    def spare(self) -> bool:
        """Decode a frame, if one has come whole. Raises no `ContainerError`."""
        if self._over:
            return False
        try:
            return self._open() if self._work is None else self._decode_next(self._work)
        except TruncatedError:  # its header is still to come
            return False
        except ContainerError:  # decoded anew when all is there, it says so again
            self._give_up()
            return False

    def decode(self, blob: memoryview) -> tuple[Header, State]:
        """As `codec.decode` of `blob`, which has come whole."""
        unpacking, decoded = self._unpacking, self._next
        if unpacking is None or blob.obj is not self._buffer.obj:
            return decode(blob, self._limits)
        _, header, image = read_whole(blob, self._limits)
        if header != self._header:
            return decode(blob, self._limits)

        def make_worker() -> Callable[[int], None]:
            work = unpacking.worker()
            return lambda i: work(decoded + i)

        for_each(len(header.frames) - decoded, threads_for(image, None), make_worker)
        return header, unpacking.state()

    def _open(self) -> bool:
        header, image, size = read_start(self._buffer[: self._came], self._limits)
        if size != self._size or header.seal is not None or not is_packed(header):
            self._give_up()
            return False
        self._header = header
        self._unpacking = Unpacking(self._buffer.toreadonly(), header, image)
        self._work = self._unpacking.worker()
        return True

    def _decode_next(self, work: Callable[[int], None]) -> bool:
        assert self._header is not None
        frames = self._header.frames
        if self._next == len(frames):
            return False
        frame = frames[self._next]
        if frame.offset + frame.length > self._came:
            return False
        work(self._next)
        self._next += 1
        return True

    def _give_up(self) -> None:
        self._over = True
        self._header = self._unpacking = self._work = None
        self._next = 0
