"""Rounded forms of a state: what is kept of each tensor, and the tensor that it stands for.

    fp16, bf16   fp32 tensors in two bytes an element; values beyond the largest become the largest
    int8         fp32 tensors of two dimensions and more, row by row: x = q * scale with q from -127
                 to 127; the scales are one more tensor ``<name>.scale``, fp32, one for each row

Everything else is kept as it is. `expanded` gives back exactly what `rounded` has kept, and
rounding that again keeps the same: a scale has 12 significant bits, so that every product is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rwkv_runtime.errors import NumericsError
from rwkv_runtime.names import Lossy
from statestore.schema import DType, Schema, TensorSpec

_HALVES = {"fp16": (DType.F16, torch.float16), "bf16": (DType.BF16, torch.bfloat16)}
_SCALE = ".scale"
_MOST = 127
_DROPPED_BITS = (1 << 12) - 1  # of a scale's 24
_LARGEST_SCALE = 2.0**121  # times 127 it is still a number; what lies beyond becomes that
_LEAST_ROW = 1e-30  # rows that hold nothing larger are kept as zeros


def rounded_schema(schema: Schema, lossy: Lossy) -> Schema:
    """What a rounded state of `schema` consists of."""
    specs = tuple(spec for given in schema.tensors for spec in _kept_as(given, lossy))
    return replace(schema, id=f"{schema.id}/{lossy}", tensors=specs)


def rounded(tensors: Mapping[str, Tensor], lossy: Lossy) -> dict[str, Tensor]:
    """What is kept of `tensors`, by name.

    Raises `NumericsError` for one that holds NaN or infinity: it has no neighbours to round to.
    """
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not _concerns(tensor.dtype is torch.float32, tensor.dim(), lossy):
            kept[name] = tensor
        elif lossy == "int8":
            kept[name], kept[name + _SCALE] = _rows(name, tensor)
        else:
            kept[name] = _half(name, tensor, _HALVES[lossy][1])
    return kept


def expanded(kept: Mapping[str, Tensor], schema: Schema, lossy: Lossy) -> dict[str, Tensor]:
    """The tensors of the unrounded `schema` that `kept` stands for."""
    tensors: dict[str, Tensor] = {}
    for spec in schema.tensors:
        tensor = kept[spec.name]
        if _concerns(spec.dtype is DType.F32, len(spec.shape), lossy):
            tensor = tensor.float()
            if lossy == "int8":
                tensor = tensor * kept[spec.name + _SCALE][..., None]
        tensors[spec.name] = tensor
    return tensors


def _concerns(is_fp32: bool, dimensions: int, lossy: Lossy) -> bool:
    return is_fp32 and (dimensions > 1 or lossy != "int8")


def _kept_as(spec: TensorSpec, lossy: Lossy) -> Iterator[TensorSpec]:
    if not _concerns(spec.dtype is DType.F32, len(spec.shape), lossy):
        yield spec
    elif lossy == "int8":
        yield TensorSpec(spec.name, DType.I8, spec.shape)
        yield TensorSpec(spec.name + _SCALE, DType.F32, spec.shape[:-1])
    else:
        yield TensorSpec(spec.name, _HALVES[lossy][0], spec.shape)


def _half(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    _require_finite(name, tensor.abs().amax)
    most = torch.finfo(dtype).max
    return tensor.clamp(-most, most).to(dtype)


def _rows(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
    """[..., K] -> int8 [..., K] and scales [...]."""
    largest = tensor.abs().amax(-1)
    _require_finite(name, largest.amax)
    # The next number up that has 12 significant bits: times 127 it stays exact.
    bits = (largest / _MOST).view(torch.int32)
    scale = (bits + _DROPPED_BITS).bitwise_and(~_DROPPED_BITS).view(torch.float32)
    scale = scale.clamp(max=_LARGEST_SCALE)
    scale = torch.where(largest < _LEAST_ROW, torch.zeros_like(scale), scale)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    q = (tensor / divisor[..., None]).round().clamp(-_MOST, _MOST)
    q = torch.where(scale[..., None] == 0, torch.zeros_like(q), q)
    return q.to(torch.int8), scale


def _require_finite(name: str, largest: Callable[[], Tensor]) -> None:
    if not bool(torch.isfinite(largest())):
        raise NumericsError(
            f"{name} holds NaN or infinity, which no rounded state can: "
            "compute without `lossy`, or in fp32"
        )
