"""Reading an archive in one pass, from a file or a pipe, holding one state at a time.

A record whose blob is damaged is handed out as such, and reading goes on: its lengths are sound.
Where a head is damaged, or the bytes end, nothing behind it can be found; the reader says where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

from xxhash import xxh3_128

from statestore.archive.entries import ENTRY_BYTES, parse_entry, unpack
from statestore.archive.format import (
    ABOUT_BYTES,
    DONE,
    FORMAT_VERSION,
    HEAD,
    MAGIC,
    START,
    STATE,
    Whole,
    check_head,
    check_lengths,
    start_of,
)
from statestore.buffers import take
from statestore.codec import Limits
from statestore.entry import Entry
from statestore.errors import (
    ContainerError,
    CorruptError,
    LayoutError,
    NotAContainerError,
    TruncatedError,
    UnsupportedVersionError,
)

_AT_ONCE: Final = 64 << 20  # 64 MiB: memory for more is taken as the bytes come


@dataclass(frozen=True, slots=True)
class Record:
    """A state's entry and blob. `problem`, if any, says why the blob is not to be used."""

    entry: Entry  # without a blob's name
    blob: memoryview
    problem: str = ""


class ArchiveReader:
    """The records of an archive, in order; iterate once.

    Args:
        file: read from where it stands; a pipe will do.
        limits: the largest containers that are taken in.
        strict: end at a damaged blob too, as if the archive ended ahead of it.

    Raises:
        NotAContainerError: the file is something else.
        UnsupportedVersionError: a newer release wrote it.
        ContainerError: its beginning is damaged, or missing.
    """

    def __init__(
        self, file: BinaryIO, limits: Limits | None = None, *, strict: bool = False
    ) -> None:
        self._file = file
        self._strict = strict
        self._limits = limits or Limits()
        self.sound_bytes = 0  # from the start to the end of the last record that was read
        self.complete = False  # the last record was met, and the whole is sound
        self.about: Mapping[str, str] = self._begin()

    @property
    def states(self) -> int:
        """Records that were read."""
        return self.whole.states

    def __iter__(self) -> Iterator[Record]:
        """The records of states.

        Raises:
            TruncatedError: the archive ends ahead of its last record.
            ContainerError: a head is damaged, or the whole is not what was written.
        """
        try:
            while (record := self._next()) is not None:
                yield record
        except ContainerError as error:
            raise type(error)(
                f"the archive is sound up to byte {self.sound_bytes}, {self.states} of its states; "
                f"then: {error}"
            ) from error

    def _begin(self) -> Mapping[str, str]:
        start = bytes(self._take(START.size))
        if start[: len(MAGIC)] != MAGIC[: len(start)] or not start:
            begins = f"begins with {start[:8].hex()}" if start else "is empty"
            raise NotAContainerError(f"no archive of states: it {begins}")
        if len(start) < START.size:
            raise TruncatedError(f"the archive ends after {len(start)} bytes")
        _, version, length, _ = START.unpack(start)
        if version != FORMAT_VERSION:
            raise UnsupportedVersionError(
                f"the archive has format version {version}, this release reads {FORMAT_VERSION}: "
                "use a newer one"
            )
        self._limits.check("what an archive says about itself", length, ABOUT_BYTES)
        about = bytes(self._all(length, "what it says about itself"))
        if start_of(about) != start:
            raise CorruptError("the archive's beginning is damaged: its checksum does not match")
        self.whole = Whole(start)
        self.sound_bytes = len(start) + length
        return _about(about)

    def _next(self) -> Record | None:
        head = bytes(self._all(HEAD.size, "its next record"))
        kind, entry_bytes, blob_bytes, blob_sum, _ = HEAD.unpack(head)
        if kind not in (STATE, DONE):
            raise CorruptError(f"a record begins with {kind.hex()}")
        check_lengths(entry_bytes, blob_bytes, ENTRY_BYTES, self._limits)
        packed = bytes(self._all(entry_bytes, "an entry"))
        check_head(head, packed)
        if kind == DONE:
            self._finish(packed, blob_bytes)
            return None
        entry = parse_entry(packed, blob_bytes)
        blob = self._all(blob_bytes, f"the state {entry.key}")
        sound = xxh3_128(blob).digest() == blob_sum
        if self._strict and not sound:
            raise CorruptError(f"the state {entry.key} is damaged")
        self.whole.add(head)
        self.sound_bytes += len(head) + entry_bytes + blob_bytes
        return Record(entry, blob, "" if sound else "CorruptError: damaged in the archive")

    def _finish(self, packed: bytes, blob_bytes: int) -> None:
        if unpack(packed) != [self.whole.states, self.whole.digest()] or blob_bytes:
            raise CorruptError("the archive's records are not those that were written")
        if len(self._take(1)):
            raise LayoutError("bytes trail behind the archive's end")
        self.complete = True

    def _all(self, size: int, what: str) -> memoryview:
        found = self._take(size)
        if len(found) < size:
            raise TruncatedError(f"the file ends in the midst of {what}")
        return found

    def _take(self, size: int) -> memoryview:
        """The next `size` bytes, fewer at the end of the file."""
        if size <= _AT_ONCE:
            buffer = take(size)
            return buffer[: _fill(self._file, buffer)]
        grown = bytearray()
        while len(grown) < size:
            piece = take(min(_AT_ONCE, size - len(grown)))
            count = _fill(self._file, piece)
            grown += piece[:count]
            if count < len(piece):
                break
        return memoryview(grown)


def _fill(file: BinaryIO, buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer):
        piece = file.read(min(len(buffer) - filled, 1 << 20))
        if not piece:
            break
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
    return filled


def _about(packed: bytes) -> dict[str, str]:
    found = unpack(packed)
    texts = found.items() if isinstance(found, dict) else ()
    about = {k: v for k, v in texts if isinstance(k, str) and isinstance(v, str)}
    if not isinstance(found, dict) or len(about) != len(found):
        raise LayoutError("what the archive says about itself is no map of texts")
    return about
