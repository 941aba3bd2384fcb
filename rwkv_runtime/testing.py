"""Weights files without training: for tests, and for measuring at the size of a real model.

The values are random, and spread as those of trained models are (decay from slow to fast over the
channels, keys near unit scale, mixing between 0 and 1), so that activations stay sane at any depth.
The same arguments give the same tensors.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from rwkv_runtime.weights import Architecture

# The shape of the official 0.1B model.
SHAPE_0B1 = Architecture(
    layers=12,
    width=768,
    vocabulary=65536,
    heads=12,
    head_size=64,
    decay_rank=64,
    rate_rank=64,
    value_rank=32,
    gate_rank=128,
    ffn_width=3072,
)


def small_architecture(
    layers: int = 2, width: int = 128, heads: int = 2, vocabulary: int = 256
) -> Architecture:
    """A complete but small model; the head size is width / heads."""
    return Architecture(
        layers=layers,
        width=width,
        vocabulary=vocabulary,
        heads=heads,
        head_size=width // heads,
        decay_rank=32,
        rate_rank=24,
        value_rank=16 if layers > 1 else 0,
        gate_rank=40,
        ffn_width=4 * width,
    )


def write_random_weights(
    path: Path,
    architecture: Architecture | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Architecture:
    """Write random weights to `path`, as `.safetensors` where it is named so and else as
    `.pth`; returns their dimensions.
    """
    architecture = architecture or small_architecture()
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: random_tensor(name, shape, generator).to(dtype)
        for name, shape in architecture.shapes().items()
    }
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return architecture


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A tensor fit for the place that the official `name` says, in fp32."""
    leaf = name.removesuffix(".weight").rsplit(".", 1)[-1]
    noise = torch.randn(shape, generator=generator)
    if leaf == "w0":
        return torch.linspace(-6.0, 1.0, shape[0]) + 0.3 * noise
    if leaf in {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}:
        return torch.rand(shape, generator=generator)
    if leaf in {"k_k", "k_a", "v0"}:
        return 0.9 + 0.1 * noise
    if leaf in {"a0", "r_k", "bias"}:
        return 0.1 * noise
    if leaf in {"ln0", "ln1", "ln2", "ln_x", "ln_out"}:
        return 1.0 + 0.1 * noise
    if leaf == "emb":
        return noise
    # A matrix: unit output variance, less where the product is added to the residual stream or is
    # low-rank.
    fan_in = shape[0] if leaf[-1].isdigit() else shape[1]
    small = leaf[-1].isdigit() or leaf == "output" or name.endswith("ffn.value.weight")
    scale: float = (0.3 if small else 1.0) / fan_in**0.5
    return noise * scale
