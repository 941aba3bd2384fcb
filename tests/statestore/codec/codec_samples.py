"""States and hand-made containers that the codec's tests share."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
from xxhash import xxh3_128

from statestore.codec import MAGIC, CodecName, Header, encode
from statestore.keys import StateKey
from statestore.schema import DType, State, Tensor

KEY = StateKey(bytes(range(32)), 1234)
FINGERPRINT = bytes(range(32, 64))
TOKENS = bytes(range(64, 96))
NUMPY = {DType.F32: "<f4", DType.F16: "<f2", DType.BF16: "<u2", DType.I32: "<i4", DType.I8: "i1"}

Fields = dict[str, Any]


def small_state() -> State:
    """All dtypes, odd lengths, an empty tensor, an output; all between 1 and 2: it shrinks."""
    f32 = (1 + np.arange(3 * 13, dtype="<u4") / 64).astype("<f4").reshape(3, 13)
    bf16 = (f32.reshape(-1)[:23].view("<u4") >> 16).astype("<u2")
    f16 = (1 + np.arange(30, dtype="<u4") / 32).astype("<f2").reshape(5, 6)
    tensors = (
        Tensor.of("blocks.0.bf16", DType.BF16, [23], bf16),
        Tensor.of("blocks.0.f32", DType.F32, [3, 13], f32),
        Tensor.of("blocks.0.none", DType.F32, [0, 4], b""),
        Tensor.of("blocks.0.i32", DType.I32, [7], np.arange(-3, 4, dtype="<i4")),
        Tensor.of("blocks.0.f16", DType.F16, [5, 6], f16),
        Tensor.of("blocks.0.one", DType.F32, [], np.float32(1.5)),
    )
    output = Tensor.of("output.logits", DType.F32, [5], np.arange(5, dtype="<f4") / 4 + 1)
    return State("rwkv-test/1", tensors, output)


def header_of(state: State) -> Header:
    return Header.of(
        state,
        key=KEY,
        fingerprint=FINGERPRINT,
        namespace="default",
        token_digest=TOKENS,
        provenance={"role": "segment", "created_at": "0.0"},
    )


def blob_of(state: State, codec: CodecName, threads: int | None = None) -> bytes:
    return b"".join(encode(header_of(state), state, codec, threads=threads))


def sealed(header: bytes, *, length: int | None = None, version: int = 1) -> bytes:
    """Prefix, a checksum that matches, and these header bytes."""
    prefix = struct.pack("<8sII", MAGIC, version, len(header) if length is None else length)
    return prefix + xxh3_128(prefix + header).digest() + header


def opened(blob: bytes) -> tuple[Fields, bytes]:
    """The header's fields, and all that follows the header."""
    (length,) = struct.unpack_from("<I", blob, 12)
    return msgpack.unpackb(blob[32 : 32 + length]), blob[32 + length :]


def resealed(blob: bytes, changes: Mapping[str, Any]) -> bytes:
    """`blob` with these header fields (of the same packed length), under a right checksum."""
    fields, rest = opened(blob)
    return sealed(msgpack.packb(fields | dict(changes))) + rest


def frame_row(codec: bytes, offset: int, data: bytes, raw_length: int) -> bytes:
    checksum = xxh3_128(data).digest()
    return struct.pack("<8sQQQ16s", codec, offset, len(data), raw_length, checksum)


def forged(
    tensors: Sequence[tuple[str, str, Sequence[int]]],
    frames: Sequence[tuple[bytes, bytes, int]],
    /,
    **changes: object,
) -> bytes:
    """A container of these tensors and frames (codec, bytes, raw length), laid out and sealed."""
    fields: Fields = {
        "key": KEY.digest,
        "tokens": KEY.n_tokens,
        "fingerprint": FINGERPRINT,
        "namespace": "default",
        "token_digest": TOKENS,
        "schema": "rwkv-test/1",
        "tensors": tensors,
        "output": None,
        "frames": bytes(48 * len(frames)),
        "provenance": {},
    } | changes
    reached = 32 + len(msgpack.packb(fields))
    table, body = b"", b""
    for codec, data, raw_length in frames:
        offset = -(-reached // 64) * 64
        body += bytes(offset - reached) + data
        table += frame_row(codec, offset, data, raw_length)
        reached = offset + len(data)
    return sealed(msgpack.packb(fields | ({"frames": table} | changes))) + body


def assert_same(one: State, other: State) -> None:
    """Equal bit for bit: NaNs count by their bits."""
    assert one.schema_id == other.schema_id
    assert (one.output is None) == (other.output is None)
    for a, b in zip(one.parts, other.parts, strict=True):
        assert a.spec == b.spec
        assert a.data == b.data
