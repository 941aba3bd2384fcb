"""RWKV-7's published initialisation, under the official names.

Where it starts decides whether recall is learnt at all: the decays, the token shifts and the
learning rates inside the state are ramps over the channels, what a block adds is zero, the rest is
small.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HEAD_SIZE = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a model; heads are 64 channels wide."""

    layers: int
    width: int
    rank: int = 32
    vocabulary: int = 256


def initial_weights(shape: Shape, generator: torch.Generator) -> dict[str, Tensor]:
    """All parameters of a fresh model, in fp32."""
    c, vocabulary = shape.width, shape.vocabulary
    weights = {
        "emb.weight": _uniform(generator, (vocabulary, c), 1e-4),
        "head.weight": _orthogonal(
            generator, (vocabulary, c), 0.5 * math.sqrt(max(1, vocabulary / c))
        ),
    }
    names = ["blocks.0.ln0", "ln_out"]
    names += [f"blocks.{i}.{part}" for i in range(shape.layers) for part in ("ln1", "ln2")]
    for name in names:
        weights |= {f"{name}.weight": torch.ones(c), f"{name}.bias": torch.zeros(c)}
    for layer in range(shape.layers):
        for name, tensor in _attention(shape, layer, generator).items():
            weights[f"blocks.{layer}.att.{name}"] = tensor
        for name, tensor in _feed_forward(shape, layer, generator).items():
            weights[f"blocks.{layer}.ffn.{name}"] = tensor
    return weights


def _attention(shape: Shape, layer: int, generator: torch.Generator) -> dict[str, Tensor]:
    c, bound = shape.width, shape.width**-0.5
    return {
        **_token_shifts(shape, layer),
        **_low_ranks(shape, layer, generator),
        "k_k": 0.71 - 0.1 * _linear(c),
        "k_a": torch.full((c,), 1.02),
        "r_k": torch.full((c // HEAD_SIZE, HEAD_SIZE), -0.04),
        "receptance.weight": _uniform(generator, (c, c), 0.5 * bound),
        "key.weight": _uniform(generator, (c, c), 0.05 * bound),
        "value.weight": _uniform(generator, (c, c), 0.5 * bound),
        "output.weight": torch.zeros(c, c),
        "ln_x.weight": torch.full((c,), ((1 + layer) / shape.layers) ** 0.7),
        "ln_x.bias": torch.zeros(c),
    }


def _token_shifts(shape: Shape, layer: int) -> dict[str, Tensor]:
    """How much of the token before each channel reads: less in later layers."""
    ramp = torch.arange(shape.width) / shape.width
    early = 1 - layer / shape.layers
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    return {f"x_{name}": 1 - ramp ** (power * early) for name, power in powers.items()}


def _low_ranks(shape: Shape, layer: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The biases w0, a0, v0 and the pairs that start without effect."""
    c, rank = shape.width, shape.rank
    depth = layer / max(1, shape.layers - 1)
    within = (torch.arange(c) % HEAD_SIZE - (HEAD_SIZE - 1) / 2) / ((HEAD_SIZE - 1) / 2)
    zigzag = within * within.abs()
    decay = -6 + 6 * (torch.arange(c) / (c - 1)) ** (1 + depth**0.3)
    found = {
        "w0": decay + 0.5 + 2.5 * zigzag,
        "a0": -0.19 + 0.3 * zigzag + 0.4 * _linear(c),
        "v0": 0.73 - 0.4 * _linear(c),
    }
    if layer == 0:
        del found["v0"]
    for name in "wag" if layer == 0 else "wavg":
        found[f"{name}1"] = torch.zeros(c, rank)
        found[f"{name}2"] = _orthogonal(generator, (rank, c), 0.1)
    return found


def _feed_forward(shape: Shape, layer: int, generator: torch.Generator) -> dict[str, Tensor]:
    c = shape.width
    ramp = torch.arange(c) / c
    return {
        "x_k": 1 - ramp ** ((1 - layer / shape.layers) ** 4),
        "key.weight": _uniform(generator, (4 * c, c), 0.5 * c**-0.5),
        "value.weight": torch.zeros(c, 4 * c),
    }


def _linear(c: int) -> Tensor:
    return torch.arange(c) / (c - 1) - 0.5


def _uniform(generator: torch.Generator, size: tuple[int, int], bound: float) -> Tensor:
    return (torch.rand(size, generator=generator) * 2 - 1) * bound


def _orthogonal(generator: torch.Generator, size: tuple[int, int], gain: float) -> Tensor:
    tensor = torch.empty(size)
    return torch.nn.init.orthogonal_(tensor, gain, generator=generator)
