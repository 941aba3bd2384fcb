"""The file of a `LookupFilter`, mapped by all processes that have the store open.

| bytes | field |
| --- | --- |
| 0 | magic, ``rwkvfltr`` |
| 8 | version of this format |
| 12 | log2 of the number of words |
| 16 | generation: the catalog names it, too |
| 20 | 1: complete; 0: somebody fills it |
| 24 | digests noted, 64 bits |
| 32 | when it was begun, seconds of the host's monotonic clock |
| 40 | device and inode of this very file, 64 bits each |
| 56 | the host's boot id, 36 characters |
| 4096 | the words (`bloom`), 64 bits each |

Numbers are little-endian. A file of another boot may lack what had not reached the disk, and a
copy what was noted since, in the original: neither is believed. Blocks are reserved before a byte
is mapped, or a full disk would end the process (SIGBUS) where it only has to do without a filter.
"""

from __future__ import annotations

import functools
import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from statestore.backends.sql.bloom import Words

_MAGIC: Final = b"rwkvfltr"
_VERSION: Final = 1
_HEADER_BYTES: Final = 4096
_MAX_LOG2: Final = 30  # 8 GiB: for a thousand million entries
_HEADER: Final = np.dtype(
    [
        ("magic", "S8"),
        ("version", "<u4"),
        ("log2", "<u4"),
        ("generation", "<u4"),
        ("complete", "<u4"),
        ("noted", "<u8"),
        ("begun_s", "<f8"),
        ("device", "<u8"),
        ("inode", "<u8"),
        ("boot", "S36"),
    ]
)
_COMPLETE_AT: Final[int] = _HEADER.fields["complete"][1]  # type: ignore[index]


class _Opened:
    """A descriptor of its own, closed with the last who refers to it."""

    def __init__(self, opened: int) -> None:
        self.descriptor = os.dup(opened)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True, eq=False)
class FilterFile:
    """A mapped file. It is unmapped when nobody refers to it any more."""

    words: Words  # shared
    generation: int
    believable: bool  # of this boot, and no copy
    begun_s: float
    _header: NDArray[np.void]  # shared, [1]
    _buffer: mmap.mmap  # the whole of it
    _opened: _Opened
    words_one_by_one: memoryview  # the same as `words`; an element takes a third of the time
    _identity: tuple[int, int, int]  # device, inode, size

    @classmethod
    def map(cls, path: Path) -> FilterFile:
        """Map the file at `path`.

        Raises:
            OSError: it is not there, or cannot be mapped.
            ValueError: it is no filter of this format.
        """
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return cls._mapped(opened)
        finally:
            os.close(opened)

    @classmethod
    def create(cls, path: Path, log2: int, generation: int) -> FilterFile:
        """An empty filter of ``2**log2`` words, not complete; what lay at `path` is overwritten.
        Raises `OSError`.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        opened = os.open(path, flags, 0o600)
        try:
            os.posix_fallocate(opened, 0, _HEADER_BYTES + (8 << log2))
            status = os.fstat(opened)
            header = np.zeros(1, _HEADER)
            header["magic"], header["version"] = _MAGIC, _VERSION
            header["log2"], header["generation"] = log2, generation
            header["begun_s"] = time.monotonic()
            header["device"], header["inode"] = status.st_dev, status.st_ino
            header["boot"] = _boot()
            os.pwrite(opened, header.tobytes(), 0)
            return cls._mapped(opened)
        finally:
            os.close(opened)

    @classmethod
    def _mapped(cls, opened: int) -> FilterFile:
        status = os.fstat(opened)
        if not _HEADER_BYTES < status.st_size <= _HEADER_BYTES + (8 << _MAX_LOG2):
            raise ValueError(f"no filter has {status.st_size} bytes")
        buffer = mmap.mmap(opened, status.st_size)
        header = np.frombuffer(buffer, _HEADER, 1)
        known = header[0]
        log2 = min(int(known["log2"]), _MAX_LOG2)
        if (known["magic"], known["version"]) != (_MAGIC, _VERSION):
            raise ValueError("no filter of this format")
        if status.st_size != _HEADER_BYTES + (8 << log2):
            raise ValueError(f"2**{log2} words, in {status.st_size} bytes")
        original = (int(known["device"]), int(known["inode"])) == (status.st_dev, status.st_ino)
        return cls(
            words=np.frombuffer(buffer, "<u8", offset=_HEADER_BYTES),
            generation=int(known["generation"]),
            believable=original and known["boot"] == _boot(),
            begun_s=float(known["begun_s"]),
            _header=header,
            _buffer=buffer,
            _opened=_Opened(opened),
            words_one_by_one=memoryview(buffer)[_HEADER_BYTES:].cast("Q"),
            _identity=(status.st_dev, status.st_ino, status.st_size),
        )

    def is_linked(self) -> bool:
        """Whether it has a name and is whole: neither replaced, removed nor cut. In a third of the
        time of `is_at`, and blind to a whole directory that was moved.
        """
        try:
            status = os.fstat(self._opened.descriptor)
        except OSError:
            return False
        return status.st_nlink > 0 and status.st_size == self._identity[2]

    def is_at(self, path: Path) -> bool:
        """Whether this is the file at `path`, and whole: neither replaced, removed nor cut."""
        try:
            status = os.stat(path)  # noqa: PTH116 - half of its time
        except OSError:
            return False
        return (status.st_dev, status.st_ino, status.st_size) == self._identity

    @property
    def complete(self) -> bool:
        """Whether all entries are noted here."""
        return self._buffer[_COMPLETE_AT] != 0  # at each lookup: not through NumPy

    @property
    def noted(self) -> int:
        """Digests noted, removed ones included."""
        return int(self._header["noted"][0])

    def count(self, noted: int) -> None:
        """So many more were noted; nobody else writes meanwhile."""
        self._header["noted"] += np.uint64(noted)

    def complete_with(self, words: Words, noted: int) -> None:
        """Add what was noted elsewhere: now all is here. Nobody else writes meanwhile."""
        np.bitwise_or(self.words, words, out=self.words)
        self.count(noted)
        self._header["complete"] = 1


def is_possible() -> bool:
    """Whether this host can have such files."""
    return hasattr(os, "posix_fallocate") and _boot() != b""


@functools.lru_cache(maxsize=1)
def _boot() -> bytes:
    """Of this host; ``b""`` where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    except OSError:
        return b""
