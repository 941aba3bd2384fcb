"""States as other engines hold them. Pure: NumPy arrays in, NumPy arrays out.

    rwkv package  what is stored: per layer x, [H, V, K] (version 7) or [H, K, V] (5 to 6), x
    rwkv.cpp      one flat fp32 array; per layer the feed-forward's last input, the attention's,
                  then the recurrence in the package's order (version 4: aa, bb, pp)
    fla           flash-linear-attention's cache, version 7: per layer ``recurrent_state``
                  [1, H, K, V] fp32, ``conv_state`` [1, C] and ``ffn_state`` [1, C]

Values keep their bits where the other side has their dtype; bfloat16 and float16 become fp32
exactly, and come back exactly. A state that came from another engine has other bits than one
computed here: it belongs under a name, never under a prefix key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from statestore.errors import StateError
from statestore.schema import DType, Schema, State, Tensor, TensorSpec

Array = NDArray[Any]
Thing = TypeVar("Thing", Tensor, TensorSpec)

#: Within a layer, the places of the package's tensors in rwkv.cpp's order.
_CPP_ORDER: Final = {3: (2, 0, 1), 5: (4, 0, 1, 2, 3)}
_FLA_NAMES: Final = ("conv_state", "recurrent_state", "ffn_state")  # in the package's order


def to_rwkv_cpp(state: State) -> NDArray[np.float32]:
    """The state of any version as rwkv.cpp's flat array; the output is not part of it.

    Raises `StateError` for what is not in the package's layout, such as rows rounded to int8.
    """
    layers = _layers(state.schema_id, [tensor.spec.name for tensor in state.tensors], state.tensors)
    order = _CPP_ORDER[len(layers[0])]
    parts = [to_float32(layer[place]).ravel() for layer in layers for place in order]
    return np.concatenate(parts)


def from_rwkv_cpp(schema: Schema, flat: Array) -> State:
    """A state of `schema` from rwkv.cpp's array.

    Raises:
        StateError: not fp32, or of another length; or the schema is not in the package's layout.
    """
    wanted = sum(_count(spec) for spec in schema.tensors)
    if flat.dtype != np.float32 or flat.shape != (wanted,):
        raise StateError(
            f"a state of {schema.id} is {wanted} float32 numbers in rwkv.cpp's layout, "
            f"found {flat.dtype} {list(flat.shape)}"
        )
    tensors: list[Tensor] = []
    reached = 0
    for layer in _specs_of(schema):
        found: dict[int, Tensor] = {}
        for place in _CPP_ORDER[len(layer)]:
            spec = layer[place]
            found[place] = from_float32(spec, flat[reached : reached + _count(spec)])
            reached += _count(spec)
        tensors += [found[place] for place in range(len(layer))]
    return State(schema.id, tuple(tensors))


def to_fla(state: State) -> list[dict[str, Array]]:
    """A version 7 state as flash-linear-attention's cache holds it, layer by layer, in fp32.

    Raises `StateError` for what is not in the package's layout of version 7.
    """
    _require_seven(state.schema_id)
    layers = _layers(state.schema_id, [tensor.spec.name for tensor in state.tensors], state.tensors)
    return [
        {
            "recurrent_state": np.ascontiguousarray(to_float32(kv).swapaxes(1, 2))[None],
            "conv_state": to_float32(att)[None],
            "ffn_state": to_float32(ffn)[None],
        }
        for att, kv, ffn in layers
    ]


def from_fla(schema: Schema, layers: Sequence[Mapping[str, Array]]) -> State:
    """A state of `schema`, which is of version 7, from flash-linear-attention's cache.

    Raises:
        StateError: another number of layers, a name that is missing, or another shape.
    """
    _require_seven(schema.id)
    wanted = _specs_of(schema)
    if len(layers) != len(wanted):
        raise StateError(f"{len(layers)} layers, but {schema.id} has {len(wanted)}")
    tensors = [
        from_float32(spec, _of_fla(layer, name, spec))
        for specs, layer in zip(wanted, layers, strict=True)
        for name, spec in zip(_FLA_NAMES, specs, strict=True)
    ]
    return State(schema.id, tuple(tensors))


def to_float32(tensor: Tensor) -> NDArray[np.float32]:
    """The elements in fp32, exactly. Raises `StateError` for whole numbers."""
    data, shape = tensor.data, tensor.spec.shape
    match tensor.spec.dtype:
        case DType.F32:
            return np.frombuffer(data, "<f4").reshape(shape)
        case DType.F16:
            return np.frombuffer(data, "<f2").astype(np.float32).reshape(shape)
        case DType.BF16:
            wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
            return wide.view(np.float32).reshape(shape)
    raise StateError(f"{tensor.spec} holds whole numbers: no engine's layout has them")


def from_float32(spec: TensorSpec, values: Array) -> Tensor:
    """A tensor of `spec` from fp32 values, rounded to nearest where its dtype is narrower."""
    numbers = np.ascontiguousarray(values, dtype=np.float32)
    if spec.dtype is DType.BF16:
        bits = numbers.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
        quiet = (bits >> 16) | 0x40  # what is no number must not be rounded into infinity
        held = np.where(np.isnan(numbers), quiet, rounded).astype("<u2")
        return Tensor.of(spec.name, spec.dtype, spec.shape, held.reshape(spec.shape))
    if spec.dtype in (DType.F32, DType.F16):
        kind = "<f4" if spec.dtype is DType.F32 else "<f2"
        with np.errstate(over="ignore"):
            held = numbers.astype(kind)
        return Tensor.of(spec.name, spec.dtype, spec.shape, held.reshape(spec.shape))
    raise StateError(f"{spec} holds whole numbers: no engine's layout has them")


def _of_fla(layer: Mapping[str, Array], name: str, spec: TensorSpec) -> Array:
    if name not in layer:
        raise StateError(f"{spec.name}: {name} is missing")
    turned = name == "recurrent_state"
    shape = spec.shape if not turned else (spec.shape[0], spec.shape[2], spec.shape[1])
    found: Array = layer[name]
    if found.shape != (1, *shape):
        raise StateError(f"{spec.name}: {name} has shape {list(found.shape)}, not {[1, *shape]}")
    first: Array = found[0]
    return first.swapaxes(1, 2) if turned else first


def _specs_of(schema: Schema) -> list[tuple[TensorSpec, ...]]:
    return _layers(schema.id, [spec.name for spec in schema.tensors], schema.tensors)


def _layers(
    schema_id: str, names: Sequence[str], things: Sequence[Thing]
) -> list[tuple[Thing, ...]]:
    """Tensors or specs, ``blocks.<layer>.<part>``, by layer."""
    layers: dict[str, list[Thing]] = {}
    for name, thing in zip(names, things, strict=True):
        layers.setdefault(name.rpartition(".")[0], []).append(thing)
    sizes = {len(layer) for layer in layers.values()}
    if len(sizes) != 1 or not sizes <= _CPP_ORDER.keys() or "" in layers:
        raise StateError(f"{schema_id} is not a layout of RWKV-4 to 7 that other engines know")
    return [tuple(layer) for layer in layers.values()]


def _require_seven(schema_id: str) -> None:
    if not schema_id.startswith("rwkv7/"):
        raise StateError(f"flash-linear-attention's layout is known for version 7, not {schema_id}")


def _count(spec: TensorSpec) -> int:
    return spec.nbytes // spec.dtype.itemsize
