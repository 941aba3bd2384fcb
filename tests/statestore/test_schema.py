"""Layouts per RWKV version, tensors as plain bytes, and validation that names what differs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from statestore.errors import StateError
from statestore.schema import (
    OUTPUT_HIDDEN,
    OUTPUT_LOGITS,
    DType,
    Schema,
    State,
    Tensor,
    TensorSpec,
    rwkv4,
    rwkv5,
    rwkv7,
)

SHAPE = {"layers": 2, "width": 6, "heads": 2, "head_size": 3}
NUMPY = {DType.F32: "<f4", DType.F16: "<f2", DType.BF16: "<u2", DType.I32: "<i4", DType.I8: "i1"}


def zeros(schema: Schema, output: Tensor | None = None) -> State:
    tensors = tuple(
        Tensor.of(s.name, s.dtype, s.shape, np.zeros(s.shape, NUMPY[s.dtype]))
        for s in schema.tensors
    )
    return State(schema.id, tensors, output)


def layer(schema: Schema) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        (spec.name.removeprefix("blocks.1."), spec.dtype.value, spec.shape)
        for spec in schema.tensors
        if spec.name.startswith("blocks.1.")
    ]


def test_version_4_keeps_its_sums_in_fp32() -> None:
    schema = rwkv4(layers=2, width=6, dtype=DType.BF16)
    assert schema.id == "rwkv4/2x6/BF16"
    assert layer(schema) == [
        ("att_xx", "BF16", (6,)),
        ("att_aa", "F32", (6,)),
        ("att_bb", "F32", (6,)),
        ("att_pp", "F32", (6,)),
        ("ffn_xx", "BF16", (6,)),
    ]


@pytest.mark.parametrize("version", ["5", "5.2", "6"])
def test_versions_5_to_6_hold_a_matrix_per_head(version: str) -> None:
    schema = rwkv5(**SHAPE, dtype=DType.F16, version=version)
    assert schema.id == f"rwkv{version}/2x6/2x3/F16"
    assert layer(schema) == [
        ("att_xx", "F16", (6,)),
        ("att_kv", "F32", (2, 3, 3)),
        ("ffn_xx", "F16", (6,)),
    ]


def test_version_7_names_its_vectors_anew() -> None:
    schema = rwkv7(**SHAPE)
    assert schema.id == "rwkv7/2x6/2x3/F32"
    assert [name for name, _, _ in layer(schema)] == ["att_x_prev", "att_kv", "ffn_x_prev"]
    assert schema.tensors[0].name == "blocks.0.att_x_prev"
    assert schema.nbytes == 2 * 4 * (6 + 18 + 6)


def test_sizes_are_those_of_real_models() -> None:
    small = rwkv7(layers=12, width=768, heads=12, head_size=64)
    large = rwkv7(layers=32, width=4096, heads=64, head_size=64, dtype=DType.BF16)
    assert round(small.nbytes / 2**20, 1) == 2.3
    assert round(large.nbytes / 2**20, 1) == 32.5


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"width": -1}, {"heads": True}, {"vocabulary": -1}]
)
def test_a_layout_without_sense_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(StateError, match="1 or more"):
        rwkv7(**(SHAPE | wrong))


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(StateError, match=r"5\.3"):
        rwkv5(**SHAPE, version="5.3")


def test_a_state_of_its_schema_passes_with_and_without_output() -> None:
    schema = rwkv7(**SHAPE, vocabulary=9)
    state = zeros(schema)
    schema.validate(state)
    assert state.nbytes == schema.nbytes
    hidden = Tensor.of(OUTPUT_HIDDEN, DType.BF16, [6], bytes(12))
    logits = Tensor.of(OUTPUT_LOGITS, DType.F32, [9], bytes(36))
    for output in (hidden, logits):
        schema.validate(replace(state, output=output))
    assert replace(state, output=logits).nbytes == schema.nbytes + 36
    assert replace(state, output=logits)[OUTPUT_LOGITS] is logits


def test_logits_of_any_length_pass_where_the_vocabulary_is_not_known() -> None:
    schema = rwkv7(**SHAPE)
    schema.validate(zeros(schema, Tensor.of(OUTPUT_LOGITS, DType.F32, [11], bytes(44))))
    with pytest.raises(StateError, match=r"\[1\] is expected"):
        schema.validate(zeros(schema, Tensor.of(OUTPUT_LOGITS, DType.F32, [0], b"")))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (Tensor.of("output.other", DType.F32, [6], bytes(24)), "output.other is neither"),
        (Tensor.of(OUTPUT_HIDDEN, DType.F32, [5], bytes(20)), r"\[6\] is expected"),
        (Tensor.of(OUTPUT_HIDDEN, DType.F32, [1, 6], bytes(24)), r"\[1, 6\]"),
        (Tensor.of(OUTPUT_HIDDEN, DType.I32, [6], bytes(24)), "float vector"),
        (Tensor.of(OUTPUT_LOGITS, DType.F32, [8], bytes(32)), r"\[9\] is expected"),
    ],
)
def test_an_output_that_does_not_fit_is_named(output: Tensor, says: str) -> None:
    schema = rwkv7(**SHAPE, vocabulary=9)
    with pytest.raises(StateError, match=says):
        schema.validate(zeros(schema, output))


def test_every_difference_is_named() -> None:
    schema = rwkv7(**SHAPE)
    tensors = list(zeros(schema).tensors)
    tensors[0] = Tensor.of("blocks.0.att_x_prev", DType.F16, [6], bytes(12))
    tensors[1] = Tensor.of("blocks.0.att_kv", DType.F32, [1, 3, 3], bytes(36))
    tensors[2] = Tensor.of("extra", DType.F32, [1], bytes(4))
    with pytest.raises(StateError) as caught:
        schema.validate(State("rwkv6/2x6/2x3/F32", tuple(tensors)))
    for words in (
        "not a state of rwkv7/2x6/2x3/F32",
        "schema rwkv6/2x6/2x3/F32",
        "blocks.0.att_x_prev is F16, not F32",
        "blocks.0.att_kv is [1, 3, 3], not [2, 3, 3]",
        "blocks.0.ffn_x_prev is missing",
        "extra is unexpected",
    ):
        assert words in str(caught.value)


def test_another_order_and_a_repetition_are_named() -> None:
    schema = rwkv7(**SHAPE)
    tensors = zeros(schema).tensors
    with pytest.raises(
        StateError, match=r"the order differs: blocks\.0\.att_kv, blocks\.0\.att_x_prev"
    ):
        schema.validate(State(schema.id, (tensors[1], tensors[0], *tensors[2:])))
    with pytest.raises(StateError, match="twice"):
        schema.validate(State(schema.id, (tensors[0], *tensors)))


arrays = st.sampled_from(["<f4", ">f4", "<f2", ">f2", "<i4", ">i4"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
    )
)
TAGS = {"f4": DType.F32, "f2": DType.F16, "i4": DType.I32, "i1": DType.I8}


@given(arrays, st.booleans(), st.booleans())
def test_a_tensor_is_its_elements_in_order_and_little_endian(
    array: np.ndarray, turned: bool, sliced: bool
) -> None:
    given_array = array.T if turned else array
    if sliced and given_array.ndim:
        given_array = given_array[::-1]
    tensor = Tensor.of("t", TAGS[array.dtype.str[1:]], given_array.shape, given_array)
    assert bytes(tensor.data) == given_array.astype(array.dtype.newbyteorder("<")).tobytes()
    assert tensor.data.readonly


def test_a_contiguous_array_is_not_copied() -> None:
    array = np.zeros(4, "<f4")
    tensor = Tensor.of("t", DType.F32, [4], array)
    array[0] = 1.0
    assert bytes(tensor.data) == array.tobytes()


def test_bfloat16_comes_as_16_bit_words_or_bytes() -> None:
    words = np.array([0x3F80, 0x4000], "<u2")
    assert Tensor.of("t", DType.BF16, [2], words).data == words.tobytes()
    assert Tensor.of("t", DType.BF16, [2], memoryview(words.tobytes())).data == words.tobytes()


@pytest.mark.parametrize(
    ("dtype", "shape", "elements", "says"),
    [
        (DType.F32, [2], bytes(7), "7 bytes given, 8 expected"),
        (DType.F32, [2], np.zeros(2, "f8"), "float64 does not hold F32"),
        (DType.F32, [2], np.zeros(2, "i4"), "int32 does not hold F32"),
        (DType.F16, [2], np.zeros(2, "u2"), "uint16 does not hold F16"),
        (DType.F32, [2], np.zeros((2, 1), "f4"), r"shape \[2, 1\]"),
        (DType.F32, [2], np.zeros(9, "u1"), "9 bytes given"),
    ],
)
def test_elements_that_do_not_fit_are_refused(
    dtype: DType, shape: list[int], elements: object, says: str
) -> None:
    with pytest.raises(StateError, match=says):
        Tensor.of("t", dtype, shape, elements)  # type: ignore[arg-type]


def test_data_that_is_no_flat_view_of_bytes_is_refused() -> None:
    spec = Tensor.of("t", DType.F32, [2], bytes(8)).spec
    with pytest.raises(StateError, match="flat view of bytes"):
        Tensor(spec, memoryview(np.zeros(2, "f4")))


def test_tensors_are_cut_from_one_run_of_bytes() -> None:
    run = bytearray(range(32))
    specs = [TensorSpec("a", DType.I8, (3,)), TensorSpec("b", DType.F32, (2, 2))]
    specs.append(TensorSpec("none", DType.F32, (0,)))
    tensors = Tensor.cut(memoryview(run), specs, [slice(1, 4), slice(8, 24), slice(99, 99)])
    assert tensors == (
        Tensor(specs[0], memoryview(bytes(range(1, 4)))),
        Tensor(specs[1], memoryview(bytes(range(8, 24)))),
        Tensor(specs[2], memoryview(b"")),
    )
    assert all(tensor.data.readonly for tensor in tensors)
    assert all(tensor.data.obj is run for tensor in tensors)


def test_a_tensor_that_reaches_beyond_the_run_is_refused() -> None:
    spec = TensorSpec("b", DType.F32, (2, 2))
    with pytest.raises(StateError, match="15 bytes given, 16 expected"):
        Tensor.cut(memoryview(bytes(32)), [spec], [slice(17, 33)])
    with pytest.raises(StateError, match="flat view of bytes"):
        Tensor.cut(memoryview(np.zeros(8, "<f4")), [spec], [slice(0, 16)])


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(StateError, match="no tensor 'blocks"):
        zeros(rwkv7(**SHAPE))["blocks.9.att_kv"]
