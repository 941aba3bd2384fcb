"""The fixed parts of an archive, and the hash over the whole; the package has the byte table."""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from xxhash import xxh3_128

from statestore.codec import Limits
from statestore.errors import CorruptError, LimitError
from statestore.keys.hashing import DIGEST_BYTES

MAGIC: Final = b"\x89RWKVAR\n"
FORMAT_VERSION: Final = 1

STATE: Final = b"STAT"
DONE: Final = b"DONE"

START: Final = struct.Struct("<8sII16s")  # magic, version, length of about, checksum
HEAD: Final = struct.Struct("<4sIQ16s16s")  # kind, entry, blob, blob's checksum, checksum
CHECKSUM_BYTES: Final = 16
ABOUT_BYTES: Final = 1 << 16  # 64 KiB


def start_of(about: bytes) -> bytes:
    """The first bytes of an archive, up to `about`."""
    bare = START.pack(MAGIC, FORMAT_VERSION, len(about), b"")[:-CHECKSUM_BYTES]
    return bare + xxh3_128(bare + about).digest()


def head_of(kind: bytes, entry: bytes, blob_bytes: int, blob_sum: bytes) -> bytes:
    """The first bytes of a record, up to its entry."""
    bare = HEAD.pack(kind, len(entry), blob_bytes, blob_sum, b"")[:-CHECKSUM_BYTES]
    return bare + xxh3_128(bare + entry).digest()


def check_head(head: bytes, entry: bytes) -> None:
    """Raises `CorruptError` unless head and entry are what was written."""
    if xxh3_128(head[:-CHECKSUM_BYTES] + entry).digest() != head[-CHECKSUM_BYTES:]:
        raise CorruptError("the head of a record does not match its checksum")


def check_lengths(entry_bytes: int, blob_bytes: int, entry_limit: int, limits: Limits) -> None:
    """Raises `LimitError` for a record that is larger than any that is written."""
    if entry_bytes > entry_limit:
        raise LimitError(f"an entry of {entry_bytes} bytes; the limit here is {entry_limit}")
    limits.check("a blob's size in bytes", blob_bytes, limits.container_bytes)


class Whole:
    """The hash over the heads of an archive."""

    def __init__(self, start: bytes) -> None:
        self._hash = hashlib.sha256(start)
        self.states = 0

    def add(self, head: bytes) -> None:
        """Take in the head of a state's record."""
        self._hash.update(head)
        self.states += 1

    def digest(self) -> bytes:
        """The hash so far, `DIGEST_BYTES` long."""
        digest = self._hash.copy().digest()
        assert len(digest) == DIGEST_BYTES
        return digest
