"""Torch tensors to stored bytes and back, bit for bit, and who owns which memory."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rwkv_runtime.state import TORCH_DTYPES, from_stored, to_stored
from statestore import buffers
from statestore.codec import CODEC_NAMES, Header, decode, encode
from statestore.errors import StateError
from statestore.keys import StateKey
from statestore.schema import OUTPUT_LOGITS, DType, Schema, State, TensorSpec
from statestore.schema import Tensor as StoredTensor

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def schema_of(*specs: TensorSpec) -> Schema:
    return Schema("test", specs, width=3, vocabulary=7)


ONE = schema_of(TensorSpec("x", DType.F32, (3,)))


@given(dtype=st.sampled_from(DType), shape=shapes, data=st.data())
def test_every_bit_comes_back(dtype: DType, shape: tuple[int, ...], data: st.DataObject) -> None:
    spec = TensorSpec("x", dtype, shape)
    content = data.draw(st.binary(min_size=spec.nbytes, max_size=spec.nbytes))  # NaNs too
    state = State("test", (StoredTensor(spec, memoryview(content)),))
    tensors, output = from_stored(schema_of(spec), state)
    assert output is None
    assert tensors["x"].shape == shape
    assert tensors["x"].dtype == TORCH_DTYPES[dtype]
    assert raw(tensors["x"]) == content
    again = to_stored(schema_of(spec), tensors)
    assert bytes(again["x"].data) == content


@given(shape=st.lists(st.integers(1, 5), min_size=2, max_size=3), dtype=st.sampled_from(DType))
def test_a_tensor_that_is_not_contiguous_is_stored_in_order(shape: list[int], dtype: DType) -> None:
    size = torch.Size(shape).numel()
    tensor = torch.arange(size).to(TORCH_DTYPES[dtype]).view(shape).mT
    spec = TensorSpec("x", dtype, tuple(tensor.shape))
    stored = to_stored(schema_of(spec), {"x": tensor})
    loaded, _ = from_stored(schema_of(spec), stored)
    assert torch.equal(loaded["x"], tensor)


def test_storing_and_loading_copy_nothing_that_is_aligned() -> None:
    tensor = torch.arange(3.0)
    stored = to_stored(ONE, {"x": tensor})
    assert stored["x"].data.readonly
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        loaded, _ = from_stored(ONE, stored)
    assert warned == []
    tensor[0] = 9
    assert bytes(stored["x"].data) == raw(tensor)
    assert loaded["x"].data_ptr() == tensor.data_ptr()


def test_what_is_loaded_keeps_its_memory() -> None:
    """Also when blob and state have gone, and others take the memory that is free."""
    values = torch.randn(1 << 20)
    schema = schema_of(TensorSpec("x", DType.F32, (1 << 20,)))
    for codec in CODEC_NAMES:
        state = to_stored(schema, {"x": values})
        header = Header.of(
            state, key=StateKey(bytes(32), 1), fingerprint=bytes(32), namespace="default"
        )
        blob = buffers.take(sum(map(len, encode(header, state, codec))))
        blob[:] = b"".join(encode(header, state, codec))
        loaded = from_stored(schema, decode(blob)[1])[0]["x"]
        shared = loaded.data_ptr() - np.frombuffer(blob, np.uint8).ctypes.data
        assert (0 < shared < len(blob)) == (codec == "raw")
        assert loaded.data_ptr() % 64 == 0
        del blob
        gc.collect()
        others = [np.frombuffer(buffers.take(4 << 20), np.uint8) for _ in range(3)]
        for other in others:
            other[:] = 255
        assert torch.equal(loaded, values)


def test_loading_takes_read_only_and_unaligned_buffers() -> None:
    content = bytes([0]) + raw(torch.arange(3.0))
    state = State("test", (StoredTensor(ONE.tensors[0], memoryview(content)[1:]),))
    loaded, _ = from_stored(ONE, state)
    assert loaded["x"].tolist() == [0, 1, 2]
    assert loaded["x"].data_ptr() % 64 == 0


def test_the_output_is_kept_under_its_name() -> None:
    hidden = to_stored(ONE, {"x": torch.zeros(3)}, torch.ones(3))
    logits = to_stored(ONE, {"x": torch.zeros(3)}, torch.ones(7), output_name=OUTPUT_LOGITS)
    for state, size in ((hidden, 3), (logits, 7)):
        _, output = from_stored(ONE, state)
        assert output is not None
        assert torch.equal(output, torch.ones(size))


@pytest.mark.parametrize(
    ("tensors", "output", "what"),
    [
        ({}, None, "x is missing"),
        ({"x": torch.zeros(3), "y": torch.zeros(3)}, None, "y is unexpected"),
        ({"x": torch.zeros(4)}, None, r"x is \[4\], not \[3\]"),
        ({"x": torch.zeros(3).half()}, None, "x is F16, not F32"),
        ({"x": torch.zeros(3).double()}, None, "x holds torch.float64"),
        ({"x": torch.zeros(3)}, torch.zeros(4), "output.hidden"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tensors: dict[str, Tensor], output: Tensor | None, what: str
) -> None:
    with pytest.raises(StateError, match=what):
        to_stored(ONE, tensors, output)


def test_a_state_of_another_schema_is_refused() -> None:
    other = Schema("other", ONE.tensors, 3, 7)
    with pytest.raises(StateError, match="schema other"):
        from_stored(ONE, to_stored(other, {"x": torch.zeros(3)}))
