"""Weights files of RWKV 4, 5, 5.1, 5.2 and 6 without training, with the official names; and
state-tuned files for any.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

VERSIONS = ("4", "5", "5.1", "5.2", "6")
LAYERS, WIDTH, HEADS, VOCABULARY = 2, 128, 2, 256
MIX_RANK, DECAY_RANK = 8, 16


def write_old_weights(path: Path, version: str, *, seed: int = 0, tuned: bool = False) -> None:
    """`tuned` adds an initial state, [H, V, K] per layer, as state tuning leaves it."""
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {
        "emb.weight": torch.randn(VOCABULARY, WIDTH),
        "head.weight": matrix(VOCABULARY, WIDTH),
        **norm("blocks.0.ln0"),
        **norm("ln_out"),
    }
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        tensors |= norm(f"{block}.ln1") | norm(f"{block}.ln2")
        tensors |= attention(f"{block}.att", version) | feed_forward(f"{block}.ffn", version)
        if tuned:
            size = WIDTH // HEADS
            tensors[f"{block}.att.time_state"] = 0.1 * torch.randn(HEADS, size, size)
    torch.save(tensors, path)


def attention(prefix: str, version: str) -> dict[str, Tensor]:
    names = ["receptance", "key", "value", "output"]
    names += ["gate"] if version in ("5.1", "5.2", "6") else []
    tensors = {f"{prefix}.{name}.weight": matrix(WIDTH, WIDTH) for name in names}
    if version == "6":
        tensors |= {f"{prefix}.time_maa_{name}": mix() for name in "xwkvrg"}
        tensors[f"{prefix}.time_maa_w1"] = matrix(WIDTH, 5 * MIX_RANK)
        tensors[f"{prefix}.time_maa_w2"] = 0.1 * torch.randn(5, MIX_RANK, WIDTH)
        tensors[f"{prefix}.time_decay"] = torch.linspace(-5, 1, WIDTH).view(1, 1, WIDTH)
        tensors[f"{prefix}.time_decay_w1"] = matrix(WIDTH, DECAY_RANK)
        tensors[f"{prefix}.time_decay_w2"] = 0.1 * torch.randn(DECAY_RANK, WIDTH)
        tensors[f"{prefix}.time_faaaa"] = 0.3 * torch.randn(HEADS, WIDTH // HEADS)
        return tensors | norm(f"{prefix}.ln_x")
    mixes = "kvrg" if version in ("5.1", "5.2") else "kvr"
    tensors |= {f"{prefix}.time_mix_{name}": mix() for name in mixes}
    shape = {"4": (WIDTH,), "5.2": (HEADS, WIDTH // HEADS)}.get(version, (HEADS,))
    tensors[f"{prefix}.time_decay"] = torch.linspace(-5, 1, torch.Size(shape).numel()).view(shape)
    first = "time_faaaa" if version == "5.2" else "time_first"
    tensors[f"{prefix}.{first}"] = 0.3 * torch.randn(shape)
    return tensors if version == "4" else tensors | norm(f"{prefix}.ln_x")


def feed_forward(prefix: str, version: str) -> dict[str, Tensor]:
    kind = "maa" if version == "6" else "mix"
    return {
        f"{prefix}.time_{kind}_k": mix(),
        f"{prefix}.time_{kind}_r": mix(),
        f"{prefix}.key.weight": matrix(4 * WIDTH, WIDTH),
        f"{prefix}.receptance.weight": matrix(WIDTH, WIDTH),
        f"{prefix}.value.weight": matrix(WIDTH, 4 * WIDTH),
    }


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns) / columns**0.5


def mix() -> Tensor:
    return torch.rand(1, 1, WIDTH)


def norm(prefix: str) -> dict[str, Tensor]:
    return {
        f"{prefix}.weight": 1 + 0.1 * torch.randn(WIDTH),
        f"{prefix}.bias": 0.1 * torch.randn(WIDTH),
    }


def write_tuned(
    path: Path, *, seed: int = 1, layers: int = LAYERS, size: int = WIDTH // HEADS
) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.save(
        {
            f"blocks.{layer}.att.time_state": 0.3
            * torch.randn(HEADS, size, size, generator=generator)
            for layer in range(layers)
        },
        path,
    )
