"""The lines of a recorded trace: from a file, a pipe, or either compressed by gzip or zstd.

What it is compressed by is told by its first bytes, whatever its name. Nothing is unpacked beyond
the line that is asked for.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import zstandard

from statestore.errors import InputError

#: Longest line; a prompt of a hundred million tokens fits.
LINE_LIMIT: Final = 1 << 24  # 16 MiB

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_REPORTED: Final = 1 << 20  # bytes between two reports of progress


def lines_of(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The lines, of one longer than `LINE_LIMIT` the first bytes beyond it.

    Args:
        path: is read once, from its begin to its end; a pipe will do.
        progress: is told how many more bytes of the file were read.

    Raises `InputError` for what cannot be read, or is compressed and damaged.
    """
    try:
        with path.open("rb", buffering=0) as file:
            counted = _Counted(file, progress or (lambda _: None))
            with _unpacked(io.BufferedReader(counted, 1 << 16)) as plain:
                yield from iter(lambda: plain.readline(LINE_LIMIT + 1), b"")
            counted.report()
    except (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile) as error:
        raise InputError(f"trace {path}: it is compressed, and damaged: {error}") from error
    except OSError as error:
        raise InputError(f"trace {path}: {error.strerror or error}") from error


def _unpacked(file: io.BufferedReader) -> gzip.GzipFile | io.BufferedReader:
    head = file.peek(len(_ZSTD))
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(_ZSTD):
        unpacker = zstandard.ZstdDecompressor()
        return io.BufferedReader(unpacker.stream_reader(file, read_across_frames=True), 1 << 16)
    return file


class _Counted(io.RawIOBase):
    """`file`, which tells now and then how much of it was read."""

    def __init__(self, file: io.FileIO, progress: Callable[[int], None]) -> None:
        self._file = file
        self._progress = progress
        self._unreported = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever is a buffer
        """As `io.RawIOBase`."""
        read = self._file.readinto(buffer) or 0
        self._unreported += read
        if self._unreported >= _REPORTED:
            self.report()
        return read

    def report(self) -> None:
        """Tell of what nobody was told of yet."""
        if self._unreported:
            self._progress(self._unreported)
        self._unreported = 0
