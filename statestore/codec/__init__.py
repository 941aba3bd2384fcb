r"""The container: one state and its identity as bytes that cannot be mistaken. Never pickle.

All numbers little-endian, format version 1:

    0                8    magic 89 52 57 4B 56 53 54 0A  ("\x89RWKVST\n")
    8                4    format version
    12               4    header length h
    16               16   xxh3_128 over bytes 0..16 and the header
    32               h    header (`header`): MessagePack, one spelling
    64 * ceil(...)        frames (`frames`), each at the next multiple of 64, zeros between;
                          the last byte of the last frame is the last byte of the container

The header's frame table has 48 bytes a frame: codec name (8, zero-padded), offset (8), length (8),
raw length (8), xxh3_128 of the stored bytes (16). Which tensor bytes a frame holds: `layout`.
Encrypted containers have format version 2 and differ by what `sealing` says.
"""

from __future__ import annotations

from statestore.codec.container import (
    CODEC_NAMES,
    FORMAT_VERSION,
    MAGIC,
    CodecName,
    decode,
    encode,
    read_header,
)
from statestore.codec.following import FOLLOWED_BYTES, Following
from statestore.codec.frames import Buffer
from statestore.codec.header import Frame, Header, check_limits, expect
from statestore.codec.limits import Limits

__all__ = [
    "CODEC_NAMES",
    "FOLLOWED_BYTES",
    "FORMAT_VERSION",
    "MAGIC",
    "Buffer",
    "CodecName",
    "Following",
    "Frame",
    "Header",
    "Limits",
    "check_limits",
    "decode",
    "encode",
    "expect",
    "read_header",
]
