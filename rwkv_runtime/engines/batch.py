"""Streams decoded side by side: one product for all of them, at a width that never changes.

The bits of a product's rows depend on how many rows there are, and not on what the other rows hold.
So a batch always computes `width` rows, empty ones included: no stream's bits depend on its
neighbours. Nor do they depend on its row, where the width is one of `WIDTHS`: at others the last
rows of a product, or the last elements of a vectorised function, take another path (measured:
widths 2 and 6). Another width has other bits, and so has decoding alone: the width is part of what
makes a text repeatable. Decoded states are never stored under a prefix key, so none of this touches
the store.

With the compiled kernel a stream's bits are those of decoding alone, at every width, and a step
computes only the rows that are taken.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rwkv_runtime.engines.base import check_tokens
from rwkv_runtime.engines.rows import KernelRows, Rows, TorchRows
from rwkv_runtime.engines.rwkv7 import Rwkv7Engine
from rwkv_runtime.model import ModelState
from statestore.errors import InputError

WIDTHS = (8, 16, 32, 64, 128)


class Batch:
    """Up to `width` streams of one engine. For one thread at a time.

    Args:
        engine: computes.
        width: rows of every product, one of `WIDTHS`.
    """

    def __init__(self, engine: Rwkv7Engine, width: int) -> None:
        if width not in WIDTHS:
            raise InputError(f"a batch's width is {width}, expected one of {WIDTHS}")
        self.engine = engine
        self.width = width
        self._free = list(reversed(range(width)))
        self._joined: set[int] = set()
        self._rows: Rows
        with torch.inference_mode():
            if engine.kernel is None:
                self._rows = TorchRows(engine.weights, width)
            else:
                self._rows = KernelRows(engine.kernel)

    @property
    def room(self) -> int:
        """How many more streams fit in."""
        return len(self._free)

    def join(self, state: ModelState) -> int:
        """Take a stream in; its place. The state that is given stays as it is.

        Raises:
            InputError: there is no room.
        """
        if not self._free:
            raise InputError(f"a batch of {self.width} streams is full")
        place = self._free.pop()
        self._joined.add(place)
        with torch.inference_mode():
            self._rows.put(place, state)
        return place

    def leave(self, place: int) -> ModelState:
        """Take a stream out; returns its state."""
        self._require(place)
        with torch.inference_mode():
            state = self._rows.take(place)
        self.drop(place)
        return state

    def drop(self, place: int) -> None:
        """Take a stream out whose state nobody wants."""
        self._require(place)
        self._rows.clear(place)
        self._joined.remove(place)
        self._free.append(place)

    def step(self, tokens: Mapping[int, int]) -> dict[int, Tensor]:
        """Read one token in every stream.

        Args:
            tokens: by place, one for each stream that has joined.

        Returns:
            Logits by place, float32 [vocabulary], in memory of their own.

        Raises:
            InputError: a stream has no token, or a place no stream; nothing was read.
            VocabularyError: a token that the model does not have; nothing was read.
        """
        return {place: row.clone() for place, row in zip(tokens, self.advance(tokens), strict=True)}

    def advance(self, tokens: Mapping[int, int]) -> Tensor:
        """As `step`, for callers that look at all rows at once: float32 [n, vocabulary] in the
        order of `tokens`, in memory of their own.
        """
        if tokens.keys() != self._joined:
            raise InputError(
                f"a step needs one token for each of the places {sorted(self._joined)}, "
                f"not for {sorted(tokens)}"
            )
        if tokens:
            check_tokens(torch.tensor(list(tokens.values()), device="cpu"), self.engine.vocabulary)
        with self.engine.computing():
            return self._rows.step(tokens)

    def _require(self, place: int) -> None:
        if place not in self._joined:
            raise InputError(f"no stream has joined at place {place}")
