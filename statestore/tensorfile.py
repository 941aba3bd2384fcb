"""Files in the safetensors format, read and written without its library: named arrays, no code.

    0      8    length h of the header, little-endian
    8      h    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__",
                a map of texts; spaces may follow
    8 + h       the arrays, without holes, in the order of their offsets

A reader takes nothing on trust: the header's length, every size and every offset is held against
the file's length and the limits ahead of any use. Dtypes are those of `statestore.schema`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from statestore.codec import Limits
from statestore.errors import LayoutError, LimitError, NotAContainerError, TruncatedError
from statestore.schema import DType, Tensor, TensorSpec

_LENGTH: Final = struct.Struct("<Q")
_METADATA: Final = "__metadata__"
_DTYPES: Final = {dtype.value: dtype for dtype in DType}


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What such a file holds."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


def pack(tensors: Iterable[Tensor], metadata: Mapping[str, str]) -> list[bytes | memoryview]:
    """The file's bytes as buffers that follow one another."""
    fields: dict[str, object] = {_METADATA: dict(sorted(metadata.items()))}
    parts: list[bytes | memoryview] = []
    reached = 0
    for tensor in tensors:
        spec = tensor.spec
        end = reached + spec.nbytes
        place = [reached, end]
        fields[spec.name] = {
            "dtype": spec.dtype.value,
            "shape": list(spec.shape),
            "data_offsets": place,
        }
        parts.append(tensor.data)
        reached = end
    header = json.dumps(fields, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return [_LENGTH.pack(len(header)) + header, *parts]


def parse(data: bytes | memoryview, limits: Limits | None = None) -> TensorFile:
    """What the bytes of a whole file hold; arrays are views of them.

    Raises:
        NotAContainerError: it does not begin as such a file does.
        TruncatedError: it is shorter than it says.
        LayoutError: holes, overlaps, sizes that disagree, names that come twice.
        LimitError: more than a state may be.
    """
    limits = limits or Limits()
    view = memoryview(data).toreadonly().cast("B")
    fields, begin = _header(view, limits)
    metadata = fields.pop(_METADATA, {})
    limits.check("the number of tensors", len(fields), limits.tensors)
    reached, tensors = 0, {}
    for name, (spec, start, end) in sorted(_specs(fields).items(), key=lambda one: one[1][1:]):
        if start != reached or end - start != spec.nbytes:
            raise LayoutError(f"{spec} lies at {start}..{end}, its place is {reached}")
        reached = end
        if begin + end > len(view):
            raise TruncatedError(f"{spec} ends at byte {begin + end}, the file at {len(view)}")
        tensors[name] = Tensor(spec, view[begin + start : begin + end])
    if begin + reached != len(view):
        raise LayoutError(f"{len(view) - begin - reached} bytes trail behind the last tensor")
    return TensorFile(tensors, _texts(metadata))


def _header(view: memoryview, limits: Limits) -> tuple[dict[str, Any], int]:
    """The header's fields, and where the arrays begin."""
    if len(view) < _LENGTH.size:
        raise NotAContainerError("no safetensors file: it is too short")
    (length,) = _LENGTH.unpack_from(view)
    limits.check("the header's length", length, limits.header_bytes)
    begin = _LENGTH.size + length
    if begin > len(view):
        raise TruncatedError(f"the header ends at byte {begin}, the file at {len(view)}")
    try:
        fields = json.loads(bytes(view[_LENGTH.size : begin]), object_pairs_hook=_once)
    except RecursionError as error:
        raise LimitError("header: nested beyond reason") from error
    except ValueError as error:
        raise NotAContainerError(f"no safetensors file: its header is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise LayoutError("header: no map of tensors")
    return fields, begin


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise LayoutError("header: a name comes twice")
    return fields


def _specs(fields: Mapping[str, Any]) -> dict[str, tuple[TensorSpec, int, int]]:
    return {name: _spec(name, value) for name, value in fields.items()}


def _spec(name: str, value: Any) -> tuple[TensorSpec, int, int]:  # noqa: ANN401 - JSON
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise LayoutError(f"header: {name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in list(_DTYPES):
        raise LayoutError(f"header: {name} has dtype {dtype!r}, known: {', '.join(DType)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise LayoutError(f"header: {name}: {numbers!r} are no sizes")
    limits = Limits()
    limits.check("a tensor's rank", len(shape), limits.dimensions)
    limits.check("a tensor's size", prod(shape), limits.decoded_bytes)
    if len(offsets) != 2:
        raise LayoutError(f"header: {name}: {offsets!r} are no two offsets")
    return TensorSpec(name, _DTYPES[dtype], tuple(shape)), offsets[0], offsets[1]


def _texts(found: Any) -> dict[str, str]:  # noqa: ANN401 - JSON
    if not isinstance(found, dict) or any(not isinstance(text, str) for text in found.values()):
        raise LayoutError(f"header: {_METADATA} is no map of texts")
    return found
