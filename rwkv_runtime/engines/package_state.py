"""A state as the `rwkv` package holds it, a list of tensors: where each version begins, and the
layout that it is stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from rwkv_runtime.weights.versions import Dimensions
from statestore.schema import DType, Schema, rwkv4, rwkv5, rwkv7

PackageState: TypeAlias = tuple[Tensor, ...]

_V4_START: Final = -1e30  # of att_pp: the logarithm of nothing


def start_of(model: Any, dimensions: Dimensions) -> PackageState:  # noqa: ANN401 - untyped
    """The state before the first token, as the package makes it."""
    with torch.inference_mode():
        if dimensions.is_seven:
            return tuple(model.generate_zero_state())
        return tuple(
            tensor
            for layer in range(dimensions.layers)
            for tensor in _layer_start(model, dimensions, layer)
        )


def _layer_start(model: Any, dimensions: Dimensions, layer: int) -> list[Tensor]:  # noqa: ANN401
    place = model.strategy[layer]
    vector = torch.zeros(dimensions.width, dtype=place.atype, device=place.device)
    if dimensions.version == "4":
        zeros = torch.zeros(dimensions.width, dtype=torch.float32, device=place.device)
        return [vector, zeros, zeros, zeros + _V4_START, vector]
    if dimensions.tuned:  # stored [H, V, K], used [H, K, V]
        tuned = model.w[f"blocks.{layer}.att.time_state"]
        kv = tuned.transpose(1, 2).to(place.device, torch.float32).contiguous()
    else:
        size = dimensions.head_size
        kv = torch.zeros(dimensions.heads, size, size, dtype=torch.float32, device=place.device)
    return [vector, kv, vector]


def schema_of(dimensions: Dimensions, dtypes: Sequence[DType]) -> Schema:
    """The layout of the version, with the dtype that the strategy gives each tensor."""
    sizes: dict[str, Any] = {
        "layers": dimensions.layers,
        "width": dimensions.width,
        "dtype": dtypes[0],
        "vocabulary": dimensions.vocabulary,
    }
    if dimensions.version == "4":
        schema = rwkv4(**sizes)
    else:
        sizes |= {"heads": dimensions.heads, "head_size": dimensions.head_size}
        layout = "5" if dimensions.version == "5.1" else dimensions.version
        schema = rwkv7(**sizes) if dimensions.is_seven else rwkv5(**sizes, version=layout)
    specs = tuple(
        replace(spec, dtype=dtype) for spec, dtype in zip(schema.tensors, dtypes, strict=True)
    )
    return schema if specs == schema.tensors else replace(schema, tensors=specs)
