"""What goes in comes out, bit for bit; golden containers stay readable.

The golden containers were written by ``python tests/statestore/codec/test_codec.py``; they are
kept for good and joined by others with each new format version.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.codec import (
    CODEC_NAMES,
    FORMAT_VERSION,
    MAGIC,
    CodecName,
    Limits,
    decode,
    encode,
    expect,
    read_header,
)
from statestore.codec.layout import PIECE_BYTES
from statestore.errors import CorruptError, ForeignError, InputError, LimitError, StateError
from statestore.keys import StateKey
from statestore.schema import DType, State, Tensor
from tests.checkout import GOLDEN
from tests.statestore.codec.codec_samples import (
    FINGERPRINT,
    KEY,
    NUMPY,
    TOKENS,
    assert_same,
    blob_of,
    header_of,
    opened,
    small_state,
)

pytestmark = pytest.mark.usefixtures("in_use")
codecs = pytest.mark.parametrize("codec", CODEC_NAMES)


def golden_file(codec: str) -> Path:
    return GOLDEN / f"container-v{FORMAT_VERSION}-{codec}.bin"


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    dtype = draw(st.sampled_from(DType))
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    kind = draw(st.sampled_from(("any", "alike", "words")))
    if kind == "any":
        data = draw(st.binary(min_size=size, max_size=size))
    elif kind == "alike":
        data = draw(st.binary(min_size=1, max_size=1)) * size
    else:
        data = (np.arange(size // dtype.itemsize) / 8 + 1).astype(NUMPY[dtype]).tobytes()
    return Tensor.of(name, dtype, shape, data)


@st.composite
def states(draw: st.DrawFn) -> State:
    count = draw(st.integers(0, 6))
    listed = tuple(draw(tensors(f"t{i}")) for i in range(count))
    output = draw(st.none() | tensors("output.logits"))
    return State(draw(st.text(max_size=20)), listed, output)


@given(states(), st.sampled_from(CODEC_NAMES))
def test_every_state_comes_back_bit_for_bit(state: State, codec: CodecName) -> None:
    blob = blob_of(state, codec)
    header, found = decode(blob)
    assert_same(found, state)
    assert replace(header, frames=()) == header_of(state)
    assert read_header(blob) == header


@codecs
@pytest.mark.parametrize("threads", [None, 1, 2, 5])
@pytest.mark.parametrize(
    "words", [PIECE_BYTES // 4, 3 * PIECE_BYTES // 4 - 1, 6 * PIECE_BYTES // 4 + 5]
)
def test_large_tensors_span_frames(codec: CodecName, threads: int | None, words: int) -> None:
    random = np.random.default_rng(words)
    state = State(
        "large",
        (
            Tensor.of("half", DType.BF16, [words], random.integers(0, 2**16, words, "<u2")),
            Tensor.of("first", DType.F32, [1000], random.standard_normal(1000, "f4")),
            Tensor.of("whole", DType.F32, [words], random.standard_normal(words, "f4")),
            Tensor.of("last", DType.F16, [7], random.standard_normal(7).astype("<f2")),
        ),
    )
    blob = blob_of(state, codec, threads)
    assert_same(decode(blob, threads=threads)[1], state)
    assert blob == blob_of(state, codec, 1)
    assert len(opened(blob)[0]["frames"]) // 48 >= 2


@codecs
def test_an_array_with_gaps_is_stored_in_order(codec: CodecName) -> None:
    array = np.arange(60, dtype="<f4").reshape(3, 4, 5)
    for view in (array[:, ::2], array.transpose(2, 0, 1), array[::-1, 1:, ::-2]):
        state = State("gaps", (Tensor.of("t", DType.F32, view.shape, view),))
        (tensor,) = decode(blob_of(state, codec))[1].tensors
        assert np.array_equal(np.frombuffer(tensor.data, "<f4").reshape(view.shape), view)


def test_floats_shrink_and_noise_does_not_grow() -> None:
    random = np.random.default_rng(0)
    for dtype, most in ((DType.F32, 0.86), (DType.BF16, 0.70)):
        values = random.standard_normal(300_000, "f4")
        words = values if dtype is DType.F32 else (values.view("<u4") >> 16).astype("<u2")
        state = State("s", (Tensor.of("t", dtype, words.shape, words),))
        assert len(blob_of(state, "lossless")) <= most * state.nbytes
    noise = State("s", (Tensor.of("t", DType.F32, [100_000], random.bytes(400_000)),))
    assert len(blob_of(noise, "lossless")) == len(blob_of(noise, "raw"))
    assert_same(decode(blob_of(noise, "lossless"))[1], noise)


def test_a_piece_on_the_edge_of_shrinking_comes_back() -> None:
    random = np.random.default_rng(1)
    for words in range(8, 160, 4):
        for alike in range(0, words, 5):
            data = np.frombuffer(random.bytes(4 * words), "<u4").copy()
            data[:alike] &= 0x00FFFFFF
            state = State("s", (Tensor.of("t", DType.F32, [words], data.tobytes()),))
            assert_same(decode(blob_of(state, "lossless"))[1], state)


def test_raw_tensors_are_the_containers_own_memory() -> None:
    blob = bytearray(blob_of(small_state(), "raw"))
    tensor = decode(blob)[1]["blocks.0.f32"]
    assert tensor.data.readonly
    blob[blob.index(bytes(tensor.data))] ^= 0xFF
    assert bytes(tensor.data) in bytes(blob)


def test_raw_buffers_are_the_states_own_memory() -> None:
    array = np.zeros(100, "<f4")
    state = State("s", (Tensor.of("t", DType.F32, [100], array),))
    buffers = encode(header_of(state), state, "raw")
    array[:] = 7
    assert bytes(buffers[-1]) == array.tobytes()


@codecs
def test_frames_are_aligned(codec: CodecName) -> None:
    header = read_header(blob_of(small_state(), codec))
    assert len(header.frames) == 2
    assert all(frame.offset % 64 == 0 for frame in header.frames)


@codecs
def test_the_golden_container_holds_the_known_values(codec: CodecName) -> None:
    header, state = decode(golden_file(codec).read_bytes())
    assert_same(state, small_state())
    assert replace(header, frames=()) == header_of(small_state())
    frames = {"raw": ["raw", "raw"], "lossless": ["planes4", "planes2"]}
    assert [frame.codec for frame in header.frames] == frames[codec]


def test_a_raw_container_is_the_same_bytes_on_every_machine() -> None:
    assert blob_of(small_state(), "raw") == golden_file("raw").read_bytes()


def test_the_bytes_lie_where_the_table_says() -> None:
    blob = golden_file("raw").read_bytes()
    assert blob[:8] == MAGIC == bytes.fromhex("89 52 57 4B 56 53 54 0A")
    assert blob[8:12] == (1).to_bytes(4, "little")
    fields, _ = opened(blob)
    assert list(fields) == [
        "key", "tokens", "fingerprint", "namespace", "token_digest",
        "schema", "tensors", "output", "frames", "provenance",
    ]  # fmt: skip
    assert fields["key"] == KEY.digest
    assert fields["token_digest"] == TOKENS
    assert fields["frames"][:8] == b"raw" + bytes(5)
    f32 = small_state()["blocks.0.f32"].data
    first = int.from_bytes(fields["frames"][8:16], "little")
    assert blob[first : first + len(f32)] == f32  # 4-byte elements come first


def test_the_order_of_provenance_means_nothing() -> None:
    state = small_state()
    one = replace(header_of(state), provenance={"a": "1", "b": "2"})
    other = replace(header_of(state), provenance={"b": "2", "a": "1"})
    assert encode(one, state, "raw")[0] == encode(other, state, "raw")[0]


@codecs
def test_the_header_is_read_from_the_first_bytes(codec: CodecName) -> None:
    blob = blob_of(small_state(), codec)
    header = decode(blob)[0]
    assert read_header(blob[: header.frames[0].offset]) == header


def test_a_container_of_something_else_is_foreign() -> None:
    header = header_of(small_state())
    expect(header, KEY, FINGERPRINT, "default")
    with pytest.raises(ForeignError, match="of key"):
        expect(header, StateKey(KEY.digest, 9), FINGERPRINT, "default")
    with pytest.raises(ForeignError, match="of fingerprint"):
        expect(header, KEY, bytes(32), "default")
    with pytest.raises(ForeignError, match="of namespace default, not other"):
        expect(header, KEY, FINGERPRINT, "other")


def test_a_header_of_another_state_is_refused() -> None:
    state = small_state()
    with pytest.raises(StateError, match=r"Header\.of"):
        encode(header_of(state), replace(state, output=None))


def test_an_unknown_codec_is_refused() -> None:
    with pytest.raises(InputError, match="'zip' is not known: raw, lossless"):
        encode(header_of(small_state()), small_state(), "zip")  # type: ignore[arg-type]


def test_what_no_reader_would_take_is_not_written() -> None:
    state = small_state()
    for header in (
        replace(header_of(state), namespace="n" * 300),
        replace(header_of(state), provenance={"note": "n" * 5000}),
    ):
        with pytest.raises(LimitError, match="the limit here is"):
            encode(header, state)


@pytest.mark.parametrize("digest", [b"", b"x" * 31, "x" * 32])
def test_a_header_takes_digests_only(digest: bytes) -> None:
    with pytest.raises(InputError, match="a digest is 32 bytes"):
        replace(header_of(small_state())).of(
            small_state(), key=KEY, fingerprint=digest, namespace="default"
        )


AT_EXIT = """
import atexit
from statestore.codec import decode, encode
from statestore.schema import DType, State, Tensor
from tests.statestore.codec.codec_samples import header_of
state = State("s", (Tensor.of("t", DType.F32, [1 << 21], bytes(1 << 23)),))

@atexit.register
def late():
    blob = b"".join(encode(header_of(state), state, threads=4))
    print(decode(blob, threads=4)[1]["t"].data == state["t"].data)
"""


def test_a_state_can_be_stored_while_the_interpreter_ends() -> None:
    environment = os.environ | {"PYTHONPATH": str(GOLDEN.parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT], env=environment, capture_output=True, check=True, text=True
    )
    assert (ended.stdout, ended.stderr) == ("True\n", "")


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    state = State("s", (Tensor.of("t", DType.F32, [1 << 20], bytes(1 << 22)),))
    blob = bytearray(blob_of(state, "raw"))
    blob[-1] ^= 1
    for _ in range(5):
        with pytest.raises(CorruptError, match="frame 3 is damaged"):
            decode(blob, threads=4)


FORKED = """
import os
from statestore.codec import decode, encode
from statestore.schema import DType, State, Tensor
from tests.statestore.codec.codec_samples import header_of
state = State("s", (Tensor.of("t", DType.F32, [1 << 21], bytes(1 << 23)),))
blob = b"".join(encode(header_of(state), state, threads=4))
child = os.fork()
same = decode(blob, threads=4)[1]["t"].data == state["t"].data
if child == 0:
    os._exit(not same)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_has_helpers_of_its_own() -> None:
    environment = os.environ | {"PYTHONPATH": str(GOLDEN.parents[1])}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED]
    ended = subprocess.run(
        command, env=environment, capture_output=True, check=True, text=True, timeout=120
    )
    assert (ended.stdout, ended.stderr) == ("True 0\n", "")


def test_an_empty_state_is_a_header_alone() -> None:
    state = State("nothing", ())
    for codec in CODEC_NAMES:
        assert len(encode(header_of(state), state, codec)) == 1
        assert_same(decode(blob_of(state, codec))[1], state)


def test_limits_can_be_raised_and_lowered() -> None:
    blob = blob_of(small_state(), "lossless")
    with pytest.raises(LimitError, match="decoded size"):
        decode(blob, Limits(decoded_bytes=small_state().nbytes - 1))
    decode(blob, Limits(decoded_bytes=small_state().nbytes))


if __name__ == "__main__":
    for name in CODEC_NAMES:
        golden_file(name).write_bytes(blob_of(small_state(), name))
