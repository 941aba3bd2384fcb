"""Decoding while a container arrives: the same state or the same error, however it comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore import codec
from statestore.codec.sealing import seal
from statestore.errors import ContainerError, LimitError
from statestore.keyring import Key
from statestore.schema import DType, State, Tensor
from tests.statestore.codec.codec_samples import blob_of, header_of, small_state

pytestmark = pytest.mark.usefixtures("in_use")
LIMITS = codec.Limits()


def large_state(seed: int = 0) -> State:
    """2.6 MB in several frames, of words and of half words."""
    source = np.random.default_rng(seed)
    words = source.normal(size=550_001).astype("<f4")
    halves = (source.normal(size=200_003).astype("<f4").view("<u4") >> 16).astype("<u2")
    tensors = (
        Tensor.of("blocks.0.kv", DType.F32, words.shape, words),
        Tensor.of("blocks.0.x", DType.BF16, halves.shape, halves),
    )
    return State("rwkv-test/1", tensors)


def arrive(
    following: codec.Following, blob: bytes, steps: list[int], size: int | None = None
) -> memoryview:
    """Let `blob` come in `steps`, with time to spare after each; what came."""
    buffer = memoryview(bytearray(len(blob) if size is None else size))
    buffer[:] = b"\xaa" * len(buffer)  # what has not come is not zeros
    following.begin(buffer)
    came = 0
    for step in [*steps, len(blob)]:
        begin, came = came, min(came + step, len(blob))
        buffer[begin:came] = blob[begin:came]
        following.came(came)
        while following.spare():
            pass
    return buffer[: len(blob)].toreadonly()


def outcome(decode: Callable[[], Any]) -> Any:
    try:
        return decode()
    except ContainerError as error:
        return type(error), str(error)


@given(name=st.sampled_from(codec.CODEC_NAMES), steps=st.lists(st.integers(0, 500), max_size=20))
def test_a_small_state_in_any_steps(name: codec.CodecName, steps: list[int]) -> None:
    blob = blob_of(small_state(), name)
    following = codec.Following(len(blob), LIMITS)
    assert following.decode(arrive(following, blob, steps)) == codec.decode(blob)


@settings(max_examples=20)
@given(
    name=st.sampled_from(codec.CODEC_NAMES),
    seed=st.integers(0, 3),
    steps=st.lists(st.integers(0, 1 << 20), max_size=8),
)
def test_a_large_state_in_any_steps(name: codec.CodecName, seed: int, steps: list[int]) -> None:
    blob = blob_of(large_state(seed), name)
    following = codec.Following(len(blob), LIMITS)
    header, state = following.decode(arrive(following, blob, steps))
    assert state == large_state(seed)
    assert header == codec.decode(blob)[0]


def test_frames_are_decoded_as_they_come_and_no_sooner() -> None:
    blob = blob_of(large_state(), "lossless")
    frames = codec.read_header(blob).frames
    following = codec.Following(len(blob), LIMITS)
    buffer = memoryview(bytearray(blob))
    following.begin(buffer)
    decoded = []
    for frame in frames:
        end = frame.offset + frame.length
        for came in (end - 1, end):
            following.came(came)
            while following.spare():
                pass
            decoded.append(following.decoded)
    assert decoded == [n for i in range(len(frames)) for n in (i, i + 1)]
    assert following.decode(buffer)[1] == large_state()


def test_what_is_uncompressed_stays_where_it_came() -> None:
    blob = blob_of(large_state(), "raw")
    following = codec.Following(len(blob), LIMITS)
    came = arrive(following, blob, [1 << 20])
    assert following.decoded == 0
    assert all(tensor.data.obj is came.obj for tensor in following.decode(came)[1].tensors)


def damaged(blob: bytes) -> dict[str, bytes]:
    """`blob`, with a byte changed in each of its parts."""
    header = codec.read_header(blob)
    places = {"magic": 0, "length": 13, "checksum": 20, "header": 200}
    for i, frame in enumerate(header.frames):
        places |= {f"start {i}": frame.offset, f"end {i}": frame.offset + frame.length - 1}
    changed = {}
    for name, place in places.items():
        other = bytearray(blob)
        other[place] ^= 0x10
        changed[name] = bytes(other)
    return changed


@pytest.mark.parametrize("steps", [[], [100], [900_000], [100_000] * 20])
@pytest.mark.parametrize("name", codec.CODEC_NAMES)
def test_damage_is_what_it_is_without_following(name: codec.CodecName, steps: list[int]) -> None:
    sound = blob_of(large_state(), name)
    assert len(codec.read_header(sound).frames) >= 3
    for what, blob in damaged(sound).items():
        following = codec.Following(len(blob), LIMITS)
        came = arrive(following, blob, steps)
        expected = outcome(lambda: codec.decode(blob))  # noqa: B023
        assert isinstance(expected[0], type), what
        assert outcome(lambda: following.decode(came)) == expected, what  # noqa: B023


@pytest.mark.parametrize("change", [-1, 1, 64])
def test_another_length_is_what_it_is_without_following(change: int) -> None:
    sound = blob_of(large_state(), "lossless")
    blob = sound[:change] if change < 0 else sound + bytes(change)
    for size in (len(sound), len(blob)):
        following = codec.Following(size, LIMITS)
        came = arrive(following, blob, [900_000])
        expected = outcome(lambda: codec.decode(blob))
        assert isinstance(expected[0], type)
        assert outcome(lambda: following.decode(came)) == expected  # noqa: B023


def test_bytes_that_are_missing_in_the_middle() -> None:
    sound = blob_of(large_state(), "lossless")
    blob = sound[:1_000_000] + sound[1_100_000:]
    following = codec.Following(len(sound), LIMITS)
    came = arrive(following, blob, [900_000], len(sound))
    assert following.decoded == 0  # a frame was not what it should be: that ended it
    assert outcome(lambda: following.decode(came)) == outcome(lambda: codec.decode(blob))


def test_a_second_try_begins_anew() -> None:
    """Even into the same buffer, with another container of the same size."""
    first = blob_of(large_state(), "lossless")
    second = blob_of(replace(large_state(), schema_id="rwkv-test/2"), "lossless")
    assert len(first) == len(second)
    following = codec.Following(len(first), LIMITS)
    arrive(following, first, [900_000])
    assert following.decoded > 1
    came = arrive(following, second, [950_000])
    assert following.decode(came) == codec.decode(second)
    buffer = memoryview(bytearray(first))
    following.begin(buffer)
    following.came(len(first))
    while following.spare():
        pass
    following.begin(buffer)
    buffer[:] = second
    assert following.decoded == 0
    assert following.decode(buffer) == codec.decode(second)


def test_frames_of_another_header_do_not_count() -> None:
    first = blob_of(large_state(), "lossless")
    second = blob_of(replace(large_state(), schema_id="rwkv-test/2"), "lossless")
    following = codec.Following(len(first), LIMITS)
    came = arrive(following, first, [900_000])
    assert following.decoded > 1
    overwritten = memoryview(came.obj)
    overwritten[:] = second
    assert following.decode(came) == codec.decode(second)


def test_a_blob_that_came_another_way_is_decoded_from_its_own_bytes() -> None:
    followed, blob = (blob_of(large_state(seed), "lossless") for seed in (1, 2))
    following = codec.Following(len(followed), LIMITS)
    arrive(following, followed, [])
    assert following.decoded > 1
    assert following.decode(memoryview(blob))[1] == large_state(2)


def test_what_is_encrypted_is_not_followed() -> None:
    blob = b"".join(seal([blob_of(large_state(), "lossless")], Key(bytes(range(32)))))
    following = codec.Following(len(blob), LIMITS)
    came = arrive(following, blob, [100_000] * 20)
    assert following.decoded == 0
    assert outcome(lambda: following.decode(came)) == outcome(lambda: codec.decode(blob))


def test_nothing_is_allocated_beyond_the_limits() -> None:
    state = large_state()
    blob = blob_of(state, "lossless")
    limits = codec.Limits(decoded_bytes=header_of(state).state_bytes - 1)
    following = codec.Following(len(blob), limits)
    came = arrive(following, blob, [900_000])
    assert following._unpacking is None
    with pytest.raises(LimitError):
        following.decode(came)
