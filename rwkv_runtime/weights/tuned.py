"""State-tuned files: the matrices from which a model begins to read, instead of zeros.

Such a file holds ``blocks.<layer>.att.time_state``, [H, N, N], for every layer, and nothing else
that matters here. Training leaves a matrix as [H, V, K]; versions 5 and 6 compute with [H, K, V],
so theirs are turned over, version 7 takes them as they are. The file's digest is part of the
fingerprint: states that began elsewhere are never mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv_runtime.errors import WeightsError
from rwkv_runtime.weights.digests import check_unchanged, weights_digest
from rwkv_runtime.weights.tensors import open_tensors


@dataclass(frozen=True, slots=True)
class TunedState:
    """Where a model begins."""

    digest: str  # of the file, in hex
    matrices: tuple[Tensor, ...]  # per layer, fp32, as the version computes with them


def read_tuned(
    path: Path, version: str, layers: int, heads: int, head_size: int, *, cache_dir: Path | None
) -> TunedState:
    """Read a state-tuned file for a model of these dimensions.

    Raises:
        WeightsError: the file cannot be read, or is of a model of other dimensions.
    """
    digest, identity = weights_digest(path, cache_dir=cache_dir)
    with open_tensors(path) as (shapes, load):
        check_shapes(path, shapes, layers, heads, head_size)
        matrices = tuple(_matrix(path, load(_name(layer)), version) for layer in range(layers))
    check_unchanged(path, identity)
    return TunedState(digest.hex(), matrices)


def check_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], layers: int, heads: int, head_size: int
) -> None:
    """Raise WeightsError unless each layer has its matrix, and there are no others."""
    if heads == 0:
        raise WeightsError(f"{path}: RWKV-4 has no matrices to begin with")
    shape = (heads, head_size, head_size)
    for layer in range(layers):
        found = shapes.get(_name(layer))
        if found is None:
            raise WeightsError(f"{path}: {_name(layer)} is missing: the model has {layers} layers")
        if found != shape:
            raise WeightsError(
                f"{path}: {_name(layer)} has shape {list(found)}, the model needs {list(shape)}"
            )
    if sum(name.endswith(".att.time_state") for name in shapes) > layers:
        raise WeightsError(f"{path}: it has more layers than the model's {layers}")


def _matrix(path: Path, tensor: Tensor, version: str) -> Tensor:
    """In memory of its own."""
    if not tensor.is_floating_point():
        raise WeightsError(f"{path}: its matrices are {tensor.dtype}, expected floating point")
    if not torch.isfinite(tensor.float()).all():
        raise WeightsError(f"{path}: its matrices hold NaN or infinity")
    turned = tensor if version.startswith("7") else tensor.transpose(1, 2)
    return turned.to(torch.float32, copy=True).contiguous()


def _name(layer: int) -> str:
    return f"blocks.{layer}.att.time_state"
