"""The one hash of the keys: SHA-256 over length-prefixed fields.

A field is its length in bytes (u64, little-endian), then its bytes; so no two lists of fields give
the same stream. The first field of every hash is a tag that says what is hashed and holds
`KEY_VERSION`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from statestore.errors import InputError

if TYPE_CHECKING:
    from hashlib import _Hash

KEY_VERSION = 1
DIGEST_BYTES = 32


def tag(what: str) -> bytes:
    """The first field of a hash of `what`."""
    return f"rwkv-statestore/{what}/{KEY_VERSION}".encode()


def utf8(text: str, what: str) -> bytes:
    """`text` as bytes. Raises `InputError` for what UTF-8 cannot spell: a file name of stray bytes,
    say; `what` names the text.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} {text!r} holds what is no character") from None


def u64(number: int) -> bytes:
    """`number` in eight bytes, little-endian."""
    return number.to_bytes(8, "little")


def field(data: bytes) -> bytes:
    """`data` behind its length."""
    return u64(len(data)) + data


def start(*fields: bytes) -> _Hash:
    """A running hash that has taken in `fields`."""
    return hashlib.sha256(b"".join(field(data) for data in fields))


def digest(*fields: bytes) -> bytes:
    """The hash of `fields`, 32 bytes."""
    return start(*fields).digest()


def is_digest(value: object) -> bool:
    """Whether `value` can have come from `digest`."""
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES
