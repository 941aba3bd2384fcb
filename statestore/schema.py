"""What a state consists of: named tensors, by the layout of an RWKV version.

A `Schema` says which tensors a version has, in which order, dtype and shape; a `State` holds them
as plain little-endian bytes. Nothing here knows torch: tensors cross the border as (dtype, shape,
buffer).

    >>> rwkv7(layers=1, width=64, heads=1, head_size=64).tensors[1]
    TensorSpec(name='blocks.0.att_kv', dtype=<DType.F32: 'F32'>, shape=(1, 64, 64))

Layouts are those of the ``rwkv`` package (versions 4 to 7): per layer the attention's last input,
the recurrence, the feed-forward's last input. With the last inputs goes what the first new token
needs, the *output*: the last hidden vector or the logits.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import repeat
from math import prod
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statestore.errors import StateError

OUTPUT_HIDDEN = "output.hidden"  # [C], the last token's vector ahead of the head
OUTPUT_LOGITS = "output.logits"  # [V]


class DType(StrEnum):
    """Element types a state may hold; the tags are those of the safetensors format."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"
    I32 = "I32"
    I8 = "I8"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEM_BYTES[self.value]


_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I8": 1}


#: NumPy kinds and sizes that hold a dtype's elements as they are; NumPy has no bfloat16 of its own.
_HELD_AS = {
    DType.F32: ("f4",),
    DType.F16: ("f2",),
    DType.BF16: ("u2", "i2", "V2"),
    DType.I32: ("i4",),
    DType.I8: ("i1",),
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    nbytes: int = field(init=False, repr=False, compare=False)  # of all elements

    def __post_init__(self) -> None:
        object.__setattr__(self, "nbytes", self.dtype.itemsize * prod(self.shape))

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's spec and its elements: read-only bytes, C order, little-endian.

    The bytes may be another object's memory: whoever owns that must not write to it any more.
    Raises `StateError` where the size is not that of the spec.
    """

    spec: TensorSpec
    data: memoryview

    def __post_init__(self) -> None:
        data = self.data
        if data.format != "B" or data.ndim != 1 or not data.c_contiguous:
            raise StateError(f"tensor {self.spec}: data is a flat view of bytes, see Tensor.of")
        if data.nbytes != self.spec.nbytes:
            raise StateError(
                f"tensor {self.spec}: {data.nbytes} bytes given, {self.spec.nbytes} expected"
            )
        if not data.readonly:
            object.__setattr__(self, "data", data.toreadonly())

    @classmethod
    def cut(
        cls, run: memoryview, specs: Sequence[TensorSpec], places: Sequence[slice]
    ) -> tuple[Tensor, ...]:
        """Tensors as views of one run of bytes, each of its place there.

        The same tensors come of ``Tensor(spec, run[place])``, in five times as long: a fetch makes
        dozens, and no step here is one of the interpreter's. Raises `StateError` as that does.
        """
        whole = run.toreadonly()
        views = list(map(whole.__getitem__, places))
        sizes = list(map(_NBYTES, specs))
        if whole.format != "B" or whole.ndim != 1 or list(map(len, views)) != sizes:
            return tuple(cls(spec, view) for spec, view in zip(specs, views, strict=True))
        tensors = tuple(map(object.__new__, repeat(cls, len(sizes))))
        _NOWHERE.extend(map(_set_spec, tensors, specs))
        _NOWHERE.extend(map(_set_data, tensors, views))
        return tensors

    @classmethod
    def of(
        cls,
        name: str,
        dtype: DType,
        shape: Sequence[int],
        elements: bytes | bytearray | memoryview | NDArray[Any],
    ) -> Tensor:
        """Wrap bytes in C order, or an array of this dtype and shape; copies only what has gaps.

        Raises:
            StateError: an array of another dtype or shape, or bytes of another length.
        """
        spec = TensorSpec(name, dtype, tuple(int(n) for n in shape))
        if isinstance(elements, (bytes, bytearray)):
            return cls(spec, memoryview(elements))
        array = np.asarray(elements)
        if array.dtype == np.uint8 and array.ndim == 1:
            return cls(spec, _bytes_of(array))
        if not _holds(array.dtype, spec.dtype):
            raise StateError(f"tensor {spec}: an array of {array.dtype} does not hold {spec.dtype}")
        if array.shape != spec.shape:
            raise StateError(f"tensor {spec}: the array has shape {list(array.shape)}")
        return cls(spec, _bytes_of(array))


_set_spec, _set_data = (Tensor.__dict__[name].__set__ for name in ("spec", "data"))
_NBYTES = attrgetter("nbytes")
_NOWHERE: deque[None] = deque(maxlen=0)


@dataclass(frozen=True, slots=True)
class State:
    """All tensors at one position, in the schema's order, and the output where it is kept."""

    schema_id: str
    tensors: tuple[Tensor, ...]
    output: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors, then the output."""
        return self.tensors if self.output is None else (*self.tensors, self.output)

    @property
    def nbytes(self) -> int:
        """Size of all elements in bytes, the output's included."""
        return sum(tensor.spec.nbytes for tensor in self.parts)

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of this name. Raises `StateError` where there is none."""
        for tensor in self.parts:
            if tensor.spec.name == name:
                return tensor
        raise StateError(f"the state ({self.schema_id}) has no tensor {name!r}")


@dataclass(frozen=True, slots=True)
class Schema:
    """The tensors of one model's states, in order."""

    id: str
    tensors: tuple[TensorSpec, ...]
    width: int  # of the hidden vector
    vocabulary: int = 0  # length of the logits; 0: not known, any

    @property
    def nbytes(self) -> int:
        """Size of a state without its output, in bytes."""
        return sum(spec.nbytes for spec in self.tensors)

    def validate(self, state: State) -> None:
        """Raises `StateError` that names every difference between `state` and this schema."""
        differences = list(self._differences(state))
        if differences:
            raise StateError(f"not a state of {self.id}: " + "; ".join(differences))

    def _differences(self, state: State) -> Iterator[str]:
        if state.schema_id != self.id:
            yield f"schema {state.schema_id}"
        yield from _compare(self.tensors, [tensor.spec for tensor in state.tensors])
        if state.output is not None:
            yield from self._output_differences(state.output.spec)

    def _output_differences(self, output: TensorSpec) -> Iterator[str]:
        lengths = {OUTPUT_HIDDEN: self.width, OUTPUT_LOGITS: self.vocabulary}
        if output.name not in lengths:
            yield f"output {output.name} is neither {OUTPUT_HIDDEN} nor {OUTPUT_LOGITS}"
            return
        wanted = lengths[output.name] or max(1, prod(output.shape))
        if output.shape != (wanted,) or output.dtype in (DType.I32, DType.I8):
            yield f"output {output} where a float vector [{wanted}] is expected"


def rwkv4(*, layers: int, width: int, dtype: DType = DType.F32, vocabulary: int = 0) -> Schema:
    """Per layer att_xx, att_aa, att_bb, att_pp, ffn_xx, each [C]; aa, bb and pp in fp32."""
    rows = tuple((name, DType.F32, (width,)) for name in ("att_aa", "att_bb", "att_pp"))
    layer = (("att_xx", dtype, (width,)), *rows, ("ffn_xx", dtype, (width,)))
    return _schema(f"rwkv4/{layers}x{width}/{dtype}", layers, layer, width, vocabulary)


def rwkv5(
    *,
    layers: int,
    width: int,
    heads: int,
    head_size: int,
    dtype: DType = DType.F32,
    vocabulary: int = 0,
    version: str = "5",
) -> Schema:
    """Per layer att_xx [C], att_kv [H, K, V] in fp32, ffn_xx [C]; versions 5, 5.2 and 6 alike."""
    if version not in ("5", "5.2", "6"):
        raise StateError(f"RWKV version {version!r} has no such layout: 5, 5.2 or 6")
    kv = (heads, head_size, head_size)
    layer = (
        ("att_xx", dtype, (width,)),
        ("att_kv", DType.F32, kv),
        ("ffn_xx", dtype, (width,)),
    )
    name = f"rwkv{version}/{layers}x{width}/{heads}x{head_size}/{dtype}"
    return _schema(name, layers, layer, width, vocabulary)


def rwkv7(
    *,
    layers: int,
    width: int,
    heads: int,
    head_size: int,
    dtype: DType = DType.F32,
    vocabulary: int = 0,
) -> Schema:
    """Per layer att_x_prev [C], att_kv [H, V, K] in fp32, ffn_x_prev [C]."""
    kv = (heads, head_size, head_size)
    layer = (
        ("att_x_prev", dtype, (width,)),
        ("att_kv", DType.F32, kv),
        ("ffn_x_prev", dtype, (width,)),
    )
    name = f"rwkv7/{layers}x{width}/{heads}x{head_size}/{dtype}"
    return _schema(name, layers, layer, width, vocabulary)


def _schema(
    name: str,
    layers: int,
    layer: Sequence[tuple[str, DType, tuple[int, ...]]],
    width: int,
    vocabulary: int,
) -> Schema:
    sizes = [layers, width, *(n for _, _, shape in layer for n in shape)]
    if any(type(n) is not int or n < 1 for n in sizes) or vocabulary < 0:
        raise StateError(f"schema {name}: sizes are 1 or more")
    specs = tuple(
        TensorSpec(f"blocks.{i}.{suffix}", dtype, shape)
        for i in range(layers)
        for suffix, dtype, shape in layer
    )
    return Schema(name, specs, width, vocabulary)


def _compare(wanted: Sequence[TensorSpec], given: Sequence[TensorSpec]) -> Iterator[str]:
    by_name = {spec.name: spec for spec in given}
    names = {spec.name: None for spec in wanted}
    if len(by_name) != len(given):
        yield "a tensor is there twice"
    for spec in wanted:
        found = by_name.get(spec.name)
        if found is None:
            yield f"{spec.name} is missing"
        elif found.dtype is not spec.dtype:
            yield f"{spec.name} is {found.dtype}, not {spec.dtype}"
        elif found.shape != spec.shape:
            yield f"{spec.name} is {list(found.shape)}, not {list(spec.shape)}"
    yield from (f"{name} is unexpected" for name in by_name if name not in names)
    order = [name for name in by_name if name in names]
    if len(order) == len(names) and order != list(names):
        yield f"the order differs: {', '.join(order)}"


def _holds(held: np.dtype[Any], dtype: DType) -> bool:
    """Whether elements of NumPy's `held` are those of `dtype`, bit for bit."""
    if held.name == "bfloat16":
        return dtype is DType.BF16
    return f"{held.kind}{held.itemsize}" in _HELD_AS[dtype]


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The array's elements as flat bytes, little-endian and C order; a copy only where it must."""
    if array.size == 0:
        return memoryview(b"")
    flat = np.ascontiguousarray(array).reshape(-1)
    foreign = ">" if sys.byteorder == "little" else "="
    if array.dtype.byteorder == foreign:
        flat = flat.byteswap()
    return flat.view(np.uint8).data
