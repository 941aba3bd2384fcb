"""Damaged containers: every flipped bit and every cut is found, and named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.codec import CODEC_NAMES, CodecName, decode, read_header
from statestore.errors import (
    ContainerError,
    CorruptError,
    LayoutError,
    NotAContainerError,
    TruncatedError,
    UnsupportedVersionError,
)
from tests.statestore.codec.codec_samples import blob_of, small_state

codecs = pytest.mark.parametrize("codec", CODEC_NAMES)


@codecs
def test_every_flipped_bit_is_found(codec: CodecName) -> None:
    blob = bytearray(blob_of(small_state(), codec))
    missed = []
    for place in range(8 * len(blob)):
        blob[place // 8] ^= 1 << place % 8
        try:
            decode(blob)
            missed.append(place)
        except ContainerError:
            pass
        blob[place // 8] ^= 1 << place % 8
    assert missed == []
    decode(blob)


@codecs
def test_every_cut_is_truncated(codec: CodecName) -> None:
    blob = blob_of(small_state(), codec)
    for length in range(len(blob)):
        with pytest.raises(TruncatedError):
            decode(blob[:length])


@codecs
def test_every_cut_of_the_header_is_truncated_for_its_reader(codec: CodecName) -> None:
    blob = blob_of(small_state(), codec)
    header_end = 32 + int.from_bytes(blob[12:16], "little")
    for length in range(header_end):
        with pytest.raises(TruncatedError):
            read_header(blob[:length])
    read_header(blob[:header_end])


@codecs
@given(tail=st.binary(min_size=1, max_size=200))
def test_nothing_may_trail(codec: CodecName, tail: bytes) -> None:
    with pytest.raises(LayoutError, match="trail"):
        decode(blob_of(small_state(), codec) + tail)


@codecs
def test_the_error_says_where_the_damage_is(codec: CodecName) -> None:
    blob = blob_of(small_state(), codec)
    frames = read_header(blob).frames
    header_end = 32 + int.from_bytes(blob[12:16], "little")
    for place, kind, says in (
        (0, NotAContainerError, "no state container"),
        (8, UnsupportedVersionError, "format version 0, this release reads 1"),
        (11, UnsupportedVersionError, "format version"),
        (20, CorruptError, "header is damaged"),
        (40, CorruptError, "header is damaged"),
        (header_end, LayoutError, "padding ahead of frame 0"),
        (frames[0].offset, CorruptError, "frame 0 is damaged"),
        (frames[1].offset - 1, LayoutError, "padding ahead of frame 1"),
        (len(blob) - 1, CorruptError, "frame 1 is damaged"),
    ):
        damaged = bytearray(blob)
        damaged[place] ^= 1
        with pytest.raises(kind, match=says):
            decode(damaged)


@given(st.binary(max_size=300))
def test_other_bytes_are_no_container(data: bytes) -> None:
    with pytest.raises((NotAContainerError, TruncatedError)):
        decode(data)


@codecs
def test_a_text_mode_transfer_is_found(codec: CodecName) -> None:
    with pytest.raises(NotAContainerError):
        decode(blob_of(small_state(), codec).replace(b"\n", b"\r\n"))
