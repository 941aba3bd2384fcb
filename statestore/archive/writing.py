"""Writing an archive in one pass, and going on with one whose writer was stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import msgpack  # type: ignore[import-untyped]
from xxhash import xxh3_128

from statestore.archive.entries import pack_entry
from statestore.archive.format import (
    ABOUT_BYTES,
    CHECKSUM_BYTES,
    DONE,
    STATE,
    Whole,
    head_of,
    start_of,
)
from statestore.archive.reading import ArchiveReader
from statestore.codec import Buffer, Limits
from statestore.entry import Entry
from statestore.errors import ContainerError, LimitError


class ArchiveWriter:
    """An archive that grows; without `finish` it has no end, and a reader says so.

    Args:
        file: written from where it stands; a pipe will do. The caller closes it.
        whole: the hash over what is in it already.
    """

    def __init__(self, file: BinaryIO, whole: Whole) -> None:
        self._file = file
        self._whole = whole

    @classmethod
    def begin(cls, file: BinaryIO, about: Mapping[str, str]) -> ArchiveWriter:
        """A new archive; `about` are texts for people. Raises `LimitError` for too many."""
        packed: bytes = msgpack.packb(dict(sorted(about.items())))
        if len(packed) > ABOUT_BYTES:
            raise LimitError(f"an archive says {ABOUT_BYTES} bytes about itself, not {len(packed)}")
        start = start_of(packed)
        file.write(start + packed)
        return cls(file, Whole(start))

    @property
    def states(self) -> int:
        """How many it holds."""
        return self._whole.states

    def add(self, entry: Entry, blob: Sequence[Buffer]) -> None:
        """Append a state; the blob's buffers follow one another. Raises `LimitError`."""
        packed = pack_entry(entry)
        checksum = xxh3_128()
        for part in blob:
            checksum.update(part)
        size = sum(memoryview(part).nbytes for part in blob)
        head = head_of(STATE, packed, size, checksum.digest())
        self._file.write(head + packed)
        for part in blob:
            self._file.write(part)
        self._whole.add(head)

    def finish(self) -> None:
        """Append the last record, and flush."""
        packed: bytes = msgpack.packb([self._whole.states, self._whole.digest()])
        self._file.write(head_of(DONE, packed, 0, bytes(CHECKSUM_BYTES)) + packed)
        self._file.flush()


@dataclass(frozen=True, slots=True)
class Resumed:
    """An archive that was begun: what goes on with it, and the digests of the states in it."""

    writer: ArchiveWriter
    digests: frozenset[bytes]


def resume(
    file: BinaryIO, about: Mapping[str, str], limits: Limits | None = None
) -> Resumed | None:
    """Go on with the archive in `file`, open to read and write, behind its last sound record.

    ``None`` where it is the beginning of no archive, or of one that says other things about itself.
    """
    try:
        reader = ArchiveReader(file, limits, strict=True)
    except ContainerError:
        return None
    if dict(reader.about) != dict(about):
        return None
    digests: set[bytes] = set()
    with suppress(ContainerError):  # where it was cut off
        for record in reader:
            digests.add(record.entry.key.digest)
    file.seek(reader.sound_bytes)
    file.truncate()
    return Resumed(ArchiveWriter(file, reader.whole), frozenset(digests))
