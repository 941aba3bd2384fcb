"""Containers made to harm, under right checksums: a named error, and no memory taken for them."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from statestore.codec import Limits, decode
from statestore.errors import (
    ContainerError,
    CorruptError,
    LayoutError,
    LimitError,
    TruncatedError,
    UnsupportedVersionError,
)
from tests.statestore.codec.codec_samples import (
    blob_of,
    forged,
    frame_row,
    opened,
    resealed,
    sealed,
    small_state,
)

ONE = [("t", "F32", [16])]
DATA = bytes(range(64))
ROOM = 12 << 20  # what a parser may take for a header, however it lies


def refused(blob: bytes, kind: type[ContainerError], says: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=says):
            decode(blob)
        assert tracemalloc.get_traced_memory()[1] < ROOM
    finally:
        tracemalloc.stop()


def test_the_forger_makes_sound_containers_too() -> None:
    _, state = decode(forged(ONE, [(b"raw", DATA, 64)]))
    assert state["t"].data == DATA
    blob = blob_of(small_state(), "raw")
    assert resealed(blob, {}) == blob


@pytest.mark.parametrize("version", [0, 3, 4, 2**32 - 1])
def test_another_format_version_is_refused_by_name(version: int) -> None:
    fields, _ = opened(blob_of(small_state(), "raw"))
    refused(
        sealed(msgpack.packb(fields), version=version),
        UnsupportedVersionError,
        f"format version {version}, this release reads 1 and 2",
    )


def test_a_header_longer_than_the_limit_is_not_read() -> None:
    refused(sealed(b"", length=2**32 - 1), LimitError, "header's length is 4294967295")
    refused(sealed(b"", length=1000), TruncatedError, "its header at 1032")


def array32(count: int) -> bytes:
    return b"\xdd" + struct.pack(">I", count)


def map32(count: int) -> bytes:
    return b"\xdf" + struct.pack(">I", count)


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (array32(2**32 - 1), LimitError),
        (map32(2**32 - 1), LimitError),
        (b"\xc6" + struct.pack(">I", 2**32 - 1), LayoutError),  # bin
        (b"\xdb" + struct.pack(">I", 2**32 - 1), LayoutError),  # str
        (b"\xc9" + struct.pack(">IB", 2**32 - 1, 5), LimitError),  # ext
        (array32(1024) * 60_000, LimitError),
        (b"\x91" * 500_000, LimitError),
        (b"\x81\xa1k" * 200_000, LimitError),
        (array32(1024) * 900, LayoutError),
        (b"", LayoutError),
        (b"\xc1", LayoutError),
        (b"\x80\x80", LayoutError),
        (b"\x81\xc0\xc0", LayoutError),
        (b"\xa2\xff\xfe", LayoutError),
        (b"\x81\xd4\x00\x00\xc0", LimitError),
    ],
)
def test_a_header_that_is_a_bomb_or_nonsense(header: bytes, kind: type[ContainerError]) -> None:
    refused(sealed(header), kind, "header")


@given(st.binary(max_size=400))
def test_any_header_bytes_are_refused_by_name(header: bytes) -> None:
    with pytest.raises(ContainerError):
        decode(sealed(header))


leaves = (
    st.none() | st.booleans() | st.integers(-5, 2**64 - 1) | st.text(max_size=5)
    | st.binary(max_size=40)
)  # fmt: skip
json_like = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = tuple(opened(forged(ONE, [(b"raw", DATA, 64)]))[0])


@given(st.sampled_from(FIELDS), json_like)
def test_a_field_of_any_other_value_is_refused_or_harmless(name: str, value: object) -> None:
    blob = forged(ONE, [(b"raw", DATA, 64)], **{name: value})
    try:
        _, state = decode(blob)
    except ContainerError:
        return
    assert name not in {"tensors", "frames"}
    assert state["t"].data == DATA


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"tokens": True}, LayoutError, "tokens is bool, expected int"),
        ({"tokens": -1}, LayoutError, "tokens is -1"),
        ({"tokens": 2**63}, LayoutError, "tokens is 9223372036854775808"),
        ({"key": b"short"}, LayoutError, "key has 5 bytes"),
        ({"fingerprint": "x" * 32}, LayoutError, "fingerprint is str"),
        ({"namespace": b"default"}, LayoutError, "namespace is bytes"),
        ({"namespace": "n" * 257}, LimitError, "a name's length"),
        ({"schema": "n" * 5000}, LimitError, "exceeds max_str_len"),
        ({"tensors": [["t", "F64", [16]]]}, LayoutError, "dtype 'F64', known: F32, F16, BF16, I32"),
        ({"tensors": [["t", "F32"]]}, LayoutError, "2 fields, expected 3"),
        ({"tensors": [["t", "F32", [-16]]]}, LayoutError, "dimension is -16"),
        ({"tensors": [["t", "F32", [2**41, 0]]]}, LayoutError, "dimension is 2199023255552"),
        ({"tensors": [["t", "F32", 16]]}, LayoutError, "shape is int"),
        ({"tensors": [["t", "F32", [1] * 9]]}, LimitError, "rank is 9"),
        ({"tensors": [["t", "F32", [2**40] * 3]]}, LimitError, "decoded size in bytes is"),
        ({"tensors": [["t", "F32", [2**30, 2]]]}, LimitError, "decoded size"),
        ({"tensors": [["t", "F32", [16]]] * 2}, LayoutError, "same name"),
        ({"tensors": [[f"t{i}", "F32", [0]] for i in range(1025)]}, LimitError, "max_array_len"),
        ({"output": ["t", "F32", [1]]}, LayoutError, "same name"),
        ({"output": []}, LayoutError, "0 fields"),
        ({"frames": b"x" * 47}, LayoutError, "47 bytes, no multiple of 48"),
        ({"frames": b""}, LayoutError, "0 frames for an image of 1 pieces"),
        ({"provenance": {"a": 1}}, LayoutError, "provenance a is int"),
        ({"provenance": {str(i): "" for i in range(65)}}, LimitError, "exceeds max_map_len"),
        ({"provenance": {"b": "", "a": ""}}, LayoutError, "one spelling"),
        ({"surprise": 1}, LayoutError, "the fields are"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(
    changes: dict[str, Any], kind: type[ContainerError], says: str
) -> None:
    refused(forged(ONE, [(b"raw", DATA, 64)], **changes), kind, says)


def test_a_header_has_one_spelling() -> None:
    packed = msgpack.packb(opened(forged(ONE, [(b"raw", DATA, 64)]))[0])
    wide = packed.replace(b"\xa6tokens\xcd\x04\xd2", b"\xa6tokens\xce\x00\x00\x04\xd2")
    twice = bytes([packed[0] + 1]) + packed[1:] + b"\xa6tokens\xcd\x04\xd2"
    assert wide != packed
    refused(sealed(wide), LayoutError, "one spelling")
    refused(sealed(twice), LayoutError, "one spelling")


def placed(move: Callable[[list[list[int]]], None]) -> bytes:
    """A sound two-frame container whose frame table was changed by `move` (offset, length, raw)."""
    blob = blob_of(small_state(), "raw")
    table = opened(blob)[0]["frames"]
    rows = [list(row) for row in struct.iter_unpack("<8sQQQ16s", table)]
    numbers = [row[1:4] for row in rows]
    move(numbers)
    packed = b"".join(
        struct.pack("<8sQQQ16s", row[0], *moved, row[4])
        for row, moved in zip(rows, numbers, strict=True)
    )
    return resealed(blob, {"frames": packed})


def overlap(frames: list[list[int]]) -> None:
    frames[1][0] = frames[0][0]


def hole(frames: list[list[int]]) -> None:
    frames[1][0] += 64


def swap(frames: list[list[int]]) -> None:
    frames[0][0], frames[1][0] = frames[1][0], frames[0][0]


def unaligned(frames: list[list[int]]) -> None:
    frames[1][0] -= 4


def into_the_header(frames: list[list[int]]) -> None:
    frames[0][0] = 0


def beyond(frames: list[list[int]]) -> None:
    frames[1][0] = 2**63


@pytest.mark.parametrize("move", [overlap, hole, swap, unaligned, into_the_header, beyond])
def test_frames_lie_one_behind_the_other(move: Callable[[list[list[int]]], None]) -> None:
    refused(placed(move), LayoutError, r"frame [01] starts at byte \d+, its place is")


def shorter(frames: list[list[int]]) -> None:
    frames[0][1] -= 1


def longer(frames: list[list[int]]) -> None:
    frames[1][1] += 1


def huge(frames: list[list[int]]) -> None:
    frames[1][1] = 2**62


def raw_length(frames: list[list[int]]) -> None:
    frames[0][2] = 2**62


@pytest.mark.parametrize(
    ("move", "says"),
    [
        (shorter, r"frame 0 \(raw\) has"),
        (longer, r"frame 1 \(raw\) has"),
        (huge, r"frame 1 \(raw\) has"),
        (raw_length, "frame 0 is of 4611686018427387904 bytes, its piece has"),
    ],
)
def test_frames_have_the_size_of_their_piece(
    move: Callable[[list[list[int]]], None], says: str
) -> None:
    refused(placed(move), LayoutError, says)


@pytest.mark.parametrize("codec", [b"zip", b"", b"planes8", b"RAW", b"raw\0x", b"\xff" * 8])
def test_an_unknown_frame_codec_is_refused_by_name(codec: bytes) -> None:
    refused(forged(ONE, [(codec, DATA, 64)]), UnsupportedVersionError, "frame 0 has codec")


def test_planes_of_another_item_size_are_refused() -> None:
    refused(forged(ONE, [(b"planes2", DATA[:50], 64)]), LayoutError, "over 4-byte elements")


WORDS = [("t", "F32", [4096])]


def with_tops(tops: bytes) -> bytes:
    """A container of 4096 zero words with these bytes in the place of the compressed tops."""
    return forged(WORDS, [(b"planes4", bytes(12288) + tops, 16384)])


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)  # type: ignore[arg-type]


SOUND = zstd(bytes(4096))
GIANT = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x01\x00\x00"


def test_the_forged_planes_are_sound_but_for_what_is_changed() -> None:
    assert not any(decode(with_tops(SOUND))[1]["t"].data)


@pytest.mark.parametrize(
    ("tops", "kind", "says"),
    [
        (GIANT, LayoutError, "frame 0 holds 1099511627776 top bytes, its piece has 4096"),
        (zstd(bytes(1 << 20)), LayoutError, "holds 1048576"),
        (zstd(bytes(4097)), LayoutError, "holds 4097"),
        (zstd(b""), LayoutError, "holds 0"),
        (zstd(bytes(4096), write_content_size=False), LayoutError, "its piece has 4096"),
        (bytes(100), CorruptError, "cannot be decompressed"),
        (SOUND[:-1], CorruptError, "frame 0"),
        (SOUND + b"tail", CorruptError, "frame 0"),
        (SOUND + SOUND, CorruptError, "frame 0"),
        (SOUND[:9] + bytes(9), CorruptError, "frame 0"),
        (b"x", CorruptError, "frame 0"),
    ],
)
def test_a_bomb_inside_a_frame_is_found_ahead_of_decompression(
    tops: bytes, kind: type[ContainerError], says: str
) -> None:
    refused(with_tops(tops), kind, says)


def zstd_zeros(window: int) -> bytes:
    """4096 zeros as one run-length block, with this window descriptor."""
    size = struct.pack("<H", 4096 - 256)
    block = (1 | 1 << 1 | 4096 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x40" + bytes([window]) + size + block


def test_a_window_larger_than_a_piece_is_refused() -> None:
    assert not any(decode(with_tops(zstd_zeros(2 << 3)))[1]["t"].data)  # 4 KiB
    for log in (21, 27, 31):
        refused(with_tops(zstd_zeros(log - 10 << 3)), LayoutError, f"window is {1 << log} bytes")
    refused(with_tops(zstd_zeros(41 - 10 << 3)), CorruptError, "cannot be decompressed")


def test_a_large_state_is_not_allocated_ahead_of_its_bytes() -> None:
    pieces = 2048  # 2 GiB are declared, a few bytes are there
    table = b"".join(frame_row(b"raw", 0, b"", 1 << 20) for _ in range(pieces))
    blob = forged([("t", "F32", [pieces << 18])], [], frames=table)
    refused(blob, LayoutError, "frame 0")
    rows = np.frombuffer(table, "u1").reshape(pieces, 48).copy()
    rows[:, 16:24] = np.frombuffer((1 << 20).to_bytes(8, "little"), "u1")
    start = -(-(32 + len(msgpack.packb(opened(blob)[0]))) // 64) * 64
    for i in range(pieces):
        rows[i, 8:16] = np.frombuffer((start + (i << 20)).to_bytes(8, "little"), "u1")
    refused(resealed(blob, {"frames": rows.tobytes()}), TruncatedError, "its header says 2147")


def test_limits_hold_for_what_a_reader_chose() -> None:
    blob = blob_of(small_state(), "lossless")
    for limits in (
        Limits(header_bytes=100),
        Limits(tensors=3),
        Limits(dimensions=1),
        Limits(name_bytes=5),
        Limits(provenance_fields=1),
        Limits(provenance_bytes=3),
        Limits(decoded_bytes=100),
    ):
        with pytest.raises(LimitError):
            decode(blob, limits)
