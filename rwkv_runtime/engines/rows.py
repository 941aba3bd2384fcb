"""Where the states of a batch's streams lie, and what computes a step: PyTorch, or the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from rwkv_runtime import model
from rwkv_runtime.model import LayerState, ModelState
from rwkv_runtime.native import Held, Kernel

PARTS = ("att_x_prev", "att_kv", "ffn_x_prev")


class Rows(Protocol):
    """States by place. Called without gradients, on the engine's threads."""

    def put(self, place: int, state: ModelState) -> None:
        """Begin at `state`, which stays as it is."""

    def take(self, place: int) -> ModelState:
        """What is at `place`, in memory that is not written to any more."""

    def clear(self, place: int) -> None:
        """Nobody wants what is at `place`."""

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """Read tokens by place -> logits float32 [n, vocabulary] in their order."""


class TorchRows:
    """All places as one tensor: a step computes every one of them, taken or not."""

    def __init__(self, weights: model.Weights, width: int) -> None:
        self._weights = weights
        self._width = width
        # Rows are written to: none may be another layer's memory.
        self._state = tuple(
            LayerState(*(getattr(layer, part).clone() for part in PARTS))
            for layer in model.zero_state(weights, batch=width)
        )

    def put(self, place: int, state: ModelState) -> None:
        """See `Rows`."""
        for mine, given in zip(self._state, state, strict=True):
            for part in PARTS:
                getattr(mine, part)[place] = getattr(given, part)[0]

    def take(self, place: int) -> ModelState:
        """See `Rows`."""
        return tuple(
            LayerState(*(getattr(layer, part)[place : place + 1].clone() for part in PARTS))
            for layer in self._state
        )

    def clear(self, place: int) -> None:
        """See `Rows`. The memory stays."""

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """See `Rows`."""
        rows = torch.tensor([[tokens.get(place, 0)] for place in range(self._width)], device="cpu")
        hidden, self._state = model.forward(
            self._weights, rows.to(self._weights.emb.device), self._state, owned=True
        )
        return model.logits(self._weights, hidden[:, -1]).float()[list(tokens)]


class KernelRows:
    """Each stream's own state: a step computes those that are there, and nothing else."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._streams: dict[int, Held] = {}

    def put(self, place: int, state: ModelState) -> None:
        """See `Rows`."""
        self._streams[place] = self._kernel.hold(state)

    def take(self, place: int) -> ModelState:
        """See `Rows`."""
        return self._streams[place].state()

    def clear(self, place: int) -> None:
        """See `Rows`."""
        del self._streams[place]

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """See `Rows`."""
        streams = [self._streams[place] for place in tokens]
        return self._kernel.logits(self._kernel.go_on([*tokens.values()], streams))
