"""Streams that are decoded side by side, whatever the engine can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from rwkv_runtime.engines import Engine, EngineState, LossyEngine, Rwkv7Engine
from rwkv_runtime.engines.batch import Batch


class Lanes(Protocol):
    """A fixed number of places for streams. For one thread. No stream's bits depend on the others,
    nor on its place.
    """

    def join(self, state: EngineState) -> int:
        """Take a stream in; its place. There is one. The state stays as it is."""

    def drop(self, place: int) -> None:
        """Let a stream go."""

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """Read one token in every stream, by place -> logits float32 [n, vocabulary], in the order
        of `tokens`.
        """


class BatchedLanes:
    """Of an engine that has batches: one product for all."""

    def __init__(self, engine: Rwkv7Engine, width: int) -> None:
        self._batch = Batch(engine, width)

    def join(self, state: EngineState) -> int:
        """See `Lanes`."""
        return self._batch.join(state)

    def drop(self, place: int) -> None:
        """See `Lanes`."""
        self._batch.drop(place)

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """See `Lanes`."""
        return self._batch.advance(tokens)


class LossyLanes(BatchedLanes):
    """Of an engine that rounds at chunk ends: generated tokens are not rounded."""

    def join(self, state: EngineState) -> int:
        """See `Lanes`."""
        return super().join(state.engine)


class SingleLanes:
    """Of any engine: one stream after the other."""

    def __init__(self, engine: Engine, width: int) -> None:
        self._engine = engine
        self._free = list(reversed(range(width)))
        self._states: dict[int, EngineState] = {}

    def join(self, state: EngineState) -> int:
        """See `Lanes`."""
        place = self._free.pop()
        self._states[place] = state
        return place

    def drop(self, place: int) -> None:
        """See `Lanes`."""
        del self._states[place]
        self._free.append(place)

    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """See `Lanes`."""
        if not tokens:
            return torch.empty(0, self._engine.vocabulary, dtype=torch.float32, device="cpu")
        with torch.inference_mode():
            return torch.stack([self._decode(place, token) for place, token in tokens.items()])

    def _decode(self, place: int, token: int) -> Tensor:
        output, self._states[place] = self._engine.decode(token, self._states[place])
        return self._engine.logits(output)


def lanes_for(engine: Engine, width: int) -> Lanes:
    """The best that `engine` has. Raises `InputError` for a width that it does not have."""
    if isinstance(engine, Rwkv7Engine):
        return BatchedLanes(engine, width)
    if isinstance(engine, LossyEngine) and isinstance(engine.inner, Rwkv7Engine):
        return LossyLanes(engine.inner, width)
    return SingleLanes(engine, width)
