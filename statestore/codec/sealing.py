"""Encrypting a container, and the reverse: the same bytes come back.

A sealed container has format version 2: a header with one more field, and frames that are each
encrypted on their own by AES-256-GCM, 16 bytes longer for their tags. The header stays clear, so
that a catalog can be rebuilt without keys, and is authenticated.

    seal field   [key id (8), salt (32), header tag (16)]
    key          HKDF-SHA256 of the secret key and the salt, random for each container; so no
                 two containers share one, and nonces may simply count: 0 for the header, i + 1
                 for frame i, 12 bytes, big-endian
    AAD          `_BOUND_AS`, the header with zeros for the places, lengths and checksums of
                 frames and for its own tag, the nonce's number (8, little-endian)

The AAD binds every frame to its number, key, fingerprint, namespace, tensors and codec; the places
follow from the frames' lengths. Checksums are of the encrypted bytes: damage is told from a lack of
keys without having any. Needs the package ``cryptography``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xxhash import xxh3_128

from statestore import buffers
from statestore.codec.container import assemble, read_whole
from statestore.codec.frames import Buffer, EncodedFrame
from statestore.codec.header import SALT_BYTES, TAG_BYTES, Frame, Header, Seal, pack_header
from statestore.codec.limits import Limits
from statestore.codec.parallel import for_each
from statestore.errors import CorruptError, ForeignError, LockedError, SettingsError
from statestore.keyring import Key, Keyring

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_BOUND_AS = b"rwkv-statestore sealed container 2\0"
_DERIVED_AS = b"rwkv-statestore container key 1"
_NO_CHECKSUM = bytes(16)


def require_cryptography() -> None:
    """Raises `SettingsError` where the package is missing."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise SettingsError(
            "encryption needs cryptography: pip install 'rwkv-statestore[encryption]'"
        ) from error


def seal(blob: Sequence[Buffer], key: Key, *, salt: bytes | None = None) -> list[Buffer]:
    """The container `blob`, encrypted with `key`, as buffers that follow one another.

    Args:
        blob: a sound container that is not sealed, in parts.
        key: the secret key.
        salt: 32 bytes that were never used with this key; random by default.

    Raises `ContainerError` where `blob` is no such container.
    """
    view, header, _ = read_whole(blob[0] if len(blob) == 1 else b"".join(blob), Limits())
    if header.seal is not None:
        raise ForeignError("the container is encrypted already")
    mark = Seal(key.id, salt or secrets.token_bytes(SALT_BYTES), bytes(TAG_BYTES))
    bound = _bound(replace(header, seal=mark))
    tag = _cipher(key, mark).encrypt(_nonce(0), b"", _aad(bound, 0))

    def make_worker() -> Callable[[int], EncodedFrame]:
        cipher = _cipher(key, mark)

        def work(i: int) -> EncodedFrame:
            sealed = cipher.encrypt(_nonce(i + 1), _stored(view, header, i), _aad(bound, i + 1))
            return _frame(header.frames[i], sealed)

        return work

    frames = for_each(len(header.frames), None, make_worker)
    return assemble(replace(header, seal=replace(mark, tag=tag)), frames)


def unseal(blob: Buffer, keys: Keyring, limits: Limits | None = None) -> memoryview:
    """The container that was sealed, in memory that belongs to the caller.

    Raises:
        LockedError: it is encrypted with a key that is not among `keys`.
        ForeignError: it is not encrypted: anybody may have written it.
        ContainerError: it is damaged, or somebody has changed it.
    """
    view, header, _ = read_whole(blob, limits or Limits())
    mark = header.seal
    if mark is None:
        raise ForeignError("the container is not encrypted, and here all are")
    key = keys.get(mark.key_id)
    if key is None:
        raise LockedError(
            f"the container is encrypted with key {mark.key_id.hex()}; the keys here are {keys}"
        )
    bound = _bound(header)
    _opened("the header", _cipher(key, mark), 0, mark.tag, bound)

    def make_worker() -> Callable[[int], EncodedFrame]:
        cipher = _cipher(key, mark)

        def work(i: int) -> EncodedFrame:
            stored = _stored(view, header, i)
            opened = _opened(f"frame {i}", cipher, i + 1, stored, bound)
            return _frame(header.frames[i], opened)

        return work

    frames = for_each(len(header.frames), None, make_worker)
    return _joined(assemble(replace(header, seal=None), frames))


def _opened(what: str, cipher: AESGCM, number: int, sealed: Buffer, bound: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(_nonce(number), sealed, _aad(bound, number))
    except InvalidTag:
        raise CorruptError(f"{what} does not match its tag: damaged, or changed") from None


def _cipher(key: Key, mark: Seal) -> AESGCM:
    require_cryptography()
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), len(key.secret), mark.salt, _DERIVED_AS).derive(key.secret))


def _bound(header: Header) -> bytes:
    """What every tag covers of the header."""
    assert header.seal is not None
    frames = tuple(Frame(f.codec, 0, 0, f.raw_length, _NO_CHECKSUM) for f in header.frames)
    blank = replace(header.seal, tag=bytes(TAG_BYTES))
    return _BOUND_AS + pack_header(replace(header, frames=frames, seal=blank))


def _aad(bound: bytes, number: int) -> bytes:
    return bound + number.to_bytes(8, "little")


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _stored(view: memoryview, header: Header, i: int) -> memoryview:
    frame = header.frames[i]
    return view[frame.offset : frame.offset + frame.length]


def _frame(like: Frame, data: bytes) -> EncodedFrame:
    checksum = xxh3_128(data).digest()
    return EncodedFrame(like.codec, (memoryview(data),), len(data), like.raw_length, checksum)


def _joined(parts: Sequence[Buffer]) -> memoryview:
    whole = buffers.take(sum(len(part) for part in parts))
    reached = 0
    for part in parts:
        whole[reached : reached + len(part)] = part
        reached += len(part)
    return whole
