"""States in other engines' layouts: where each number goes, and that it comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import StateError
from statestore.layouts import (
    from_fla,
    from_float32,
    from_rwkv_cpp,
    to_fla,
    to_float32,
    to_rwkv_cpp,
)
from statestore.schema import DType, Schema, State, Tensor, TensorSpec, rwkv4, rwkv5, rwkv7

SIZES = {"layers": 2, "width": 8, "heads": 2, "head_size": 4}
SCHEMAS = [
    rwkv4(layers=2, width=8),
    rwkv5(**SIZES, version="5"),
    rwkv5(**SIZES, version="6", dtype=DType.BF16),
    rwkv7(**SIZES),
    rwkv7(**SIZES, dtype=DType.F16),
    rwkv7(**SIZES, dtype=DType.BF16),
]


def counted(schema: Schema) -> State:
    """Every element another small whole number: exact in every dtype here."""
    tensors, reached = [], 0
    for spec in schema.tensors:
        count = spec.nbytes // spec.dtype.itemsize
        values = np.arange(reached, reached + count, dtype=np.float32) % 251
        tensors.append(from_float32(spec, values))
        reached += count
    return State(schema.id, tuple(tensors))


def same(one: State, other: State) -> bool:
    pairs = zip(one.tensors, other.tensors, strict=True)
    return one.schema_id == other.schema_id and all(
        a.spec == b.spec and a.data == b.data for a, b in pairs
    )


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.id)
def test_rwkv_cpp_and_back(schema: Schema) -> None:
    state = counted(schema)
    flat = to_rwkv_cpp(state)
    assert flat.dtype == np.float32
    assert same(from_rwkv_cpp(schema, flat), state)


def test_rwkv_cpp_has_the_feed_forward_first() -> None:
    schema = rwkv7(**SIZES)
    state = counted(schema)
    layer = 2 * 8 + 2 * 4 * 4
    flat = to_rwkv_cpp(state)
    for index in range(2):
        part = flat[index * layer : (index + 1) * layer]
        assert np.array_equal(part[:8], to_float32(state[f"blocks.{index}.ffn_x_prev"]))
        assert np.array_equal(part[8:16], to_float32(state[f"blocks.{index}.att_x_prev"]))
        assert np.array_equal(part[16:], to_float32(state[f"blocks.{index}.att_kv"]).ravel())


@pytest.mark.parametrize("schema", SCHEMAS[3:], ids=lambda schema: schema.id)
def test_fla_and_back(schema: Schema) -> None:
    state = counted(schema)
    assert same(from_fla(schema, to_fla(state)), state)


def test_fla_turns_the_recurrence_over() -> None:
    state = counted(rwkv7(**SIZES))
    (first, _) = to_fla(state)
    kv = to_float32(state["blocks.0.att_kv"])
    assert first["recurrent_state"].shape == (1, 2, 4, 4)
    assert first["recurrent_state"][0, 1, 2, 3] == kv[1, 3, 2]


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_is_the_nearest_and_stays(values: list[float]) -> None:
    spec = TensorSpec("x", DType.BF16, (len(values),))
    numbers = np.array(values, np.float32)
    once = to_float32(from_float32(spec, numbers))
    assert from_float32(spec, once).data == from_float32(spec, numbers).data
    assert np.array_equal(np.isnan(once), np.isnan(numbers))
    finite = np.isfinite(numbers) & np.isfinite(once)
    error = np.abs(once[finite].astype(np.float64) - numbers[finite])
    assert np.all(error <= np.maximum(np.abs(numbers[finite].astype(np.float64)) / 256, 1e-40))


def test_what_does_not_fit_is_refused() -> None:
    schema = rwkv7(**SIZES)
    flat = to_rwkv_cpp(counted(schema))
    with pytest.raises(StateError, match="96 float32"):
        from_rwkv_cpp(schema, flat[:-1])
    with pytest.raises(StateError, match="float64"):
        from_rwkv_cpp(schema, flat.astype(np.float64))
    layers = to_fla(counted(schema))
    with pytest.raises(StateError, match="1 layers"):
        from_fla(schema, layers[:1])
    with pytest.raises(StateError, match="ffn_state is missing"):
        from_fla(schema, [layers[0], {k: v for k, v in layers[1].items() if k != "ffn_state"}])
    layers[1]["recurrent_state"] = layers[1]["recurrent_state"][:, :1]
    with pytest.raises(StateError, match="recurrent_state has shape"):
        from_fla(schema, layers)
    with pytest.raises(StateError, match="version 7"):
        to_fla(counted(rwkv5(**SIZES)))
    whole = Tensor.of("x", DType.I32, (1,), np.array([1], "<i4"))
    with pytest.raises(StateError, match="whole numbers"):
        to_float32(whole)


@pytest.mark.parametrize(
    "schema",
    [
        Schema("own", (TensorSpec("seen", DType.F32, (4,)),), 4),
        Schema("rwkv7/none", (), 4),
        Schema(
            "rwkv7/rows/int8",
            (
                TensorSpec("blocks.0.att_x_prev", DType.F32, (4,)),
                TensorSpec("blocks.0.att_kv", DType.I8, (1, 4, 4)),
                TensorSpec("blocks.0.att_kv.scale", DType.F32, (1, 4)),
                TensorSpec("blocks.0.ffn_x_prev", DType.F32, (4,)),
            ),
            4,
        ),
    ],
    ids=lambda schema: schema.id,
)
def test_what_no_other_engine_has_is_refused_by_name(schema: Schema) -> None:
    nothing = [bytes(spec.nbytes) for spec in schema.tensors]
    state = State(
        schema.id,
        tuple(map(Tensor, schema.tensors, map(memoryview, nothing))),
    )
    flat = np.zeros(sum(spec.nbytes // spec.dtype.itemsize for spec in schema.tensors), "f4")
    for attempt in (
        lambda: to_rwkv_cpp(state),
        lambda: from_rwkv_cpp(schema, flat),
        lambda: to_fla(state),
        lambda: from_fla(schema, [{}]),
    ):
        with pytest.raises(StateError, match=schema.id):
            attempt()
