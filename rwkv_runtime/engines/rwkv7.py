"""RWKV-7 in plain PyTorch, on the CPU or a GPU.

A state is `model.ModelState` with one row. The output that goes with it is the last hidden vector
[C] after ln_out, so logits are computed from the same [1, C] product whether the vector is new or
was stored. With a kernel, that one computes everything, and a token has the same bits wherever a
prompt is cut, and whether it was read or generated. It knows nothing of stores, prompts or text.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rwkv_runtime import model
from rwkv_runtime.engines.base import check_tokens
from rwkv_runtime.engines.computing import Computing
from rwkv_runtime.model import LayerState, ModelState
from rwkv_runtime.native import Kernel
from rwkv_runtime.state import DTYPES, from_stored, to_stored
from rwkv_runtime.weights import Architecture, WeightsFile
from rwkv_runtime.weights.tuned import TunedState
from statestore.keys import ChunkRule, Fingerprint
from statestore.schema import Schema, State, rwkv7

ENGINE_NAME = "rwkv7-torch"
# Raise with any change of the bits that come out; tests/runtime/engines/test_numerics.py watches.
NUMERICS_REVISION = 3
PARTS = ("att_x_prev", "att_kv", "ffn_x_prev")


class Rwkv7Engine:
    """An `Engine`; made by `load_engine`.

    Args:
        weights: all parameters, in the dtype and on the device to compute with.
        fingerprint: of everything here.
        rule: how prompts are cut into chunks.
        threads: the number that torch computes with, set in whichever thread calls; ``None``
            leaves it be.
        tuned: where to begin.
        kernel: made of the same weights.
    """

    def __init__(
        self,
        weights: WeightsFile,
        fingerprint: Fingerprint,
        rule: ChunkRule,
        threads: int | None = None,
        tuned: TunedState | None = None,
        kernel: Kernel | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.rule = rule
        self.architecture = weights.architecture
        self.vocabulary = weights.architecture.vocabulary
        self.weights = model.Weights.of(weights.tensors)
        self._tuned = tuned
        self.kernel = kernel
        self._device = self.weights.emb.device
        self.computing = Computing(threads, self._device.type, settled=kernel is None)
        self.schema = schema_of(weights.architecture, self.weights.emb.dtype)

    def initial_state(self) -> ModelState:
        """Zeros, or the tuned state."""
        with torch.inference_mode():
            zeros = model.zero_state(self.weights)
            if self._tuned is None:
                return zeros
            return tuple(
                replace(layer, att_kv=matrix[None].to(layer.att_kv))
                for layer, matrix in zip(zeros, self._tuned.matrices, strict=True)
            )

    def prefill(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """See `Engine`."""
        check_tokens(tokens, self.vocabulary)
        return self._forward(tokens.to(self._device)[None], state)

    def decode(self, token: int, state: ModelState) -> tuple[Tensor, ModelState]:
        """See `Engine`. A single token takes the recurrence's own step, without a chunked solve."""
        tokens = torch.tensor([[token]], device="cpu")
        check_tokens(tokens[0], self.vocabulary)
        return self._forward(tokens.to(self._device), state)

    def logits(self, output: Tensor) -> Tensor:
        """See `Engine`."""
        with self.computing():
            if self.kernel is not None:
                return self.kernel.logits(output)
            return model.logits(self.weights, output[None])[0].float()

    def to_stored(self, state: ModelState, output: Tensor | None) -> State:
        """See `Engine`."""
        tensors = {
            f"blocks.{layer}.{part}": getattr(of_layer, part)[0]
            for layer, of_layer in enumerate(state)
            for part in PARTS
        }
        return to_stored(self.schema, tensors, output)

    def from_stored(self, stored: State) -> tuple[ModelState, Tensor | None]:
        """See `Engine`."""
        with torch.inference_mode():
            tensors, output = from_stored(self.schema, stored, self._device)
            layers = tuple(
                LayerState(*(tensors[f"blocks.{layer}.{part}"][None] for part in PARTS))
                for layer in range(self.architecture.layers)
            )
        return layers, output

    def _forward(self, tokens: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        with self.computing():
            if self.kernel is not None:
                return self.kernel.read(tokens[0], state)
            hidden, after = model.forward(self.weights, tokens, state)
            return hidden[0, -1].clone(), after


def schema_of(architecture: Architecture, dtype: torch.dtype) -> Schema:
    """The layout of this model's states when it computes in `dtype`."""
    return rwkv7(
        layers=architecture.layers,
        width=architecture.width,
        heads=architecture.heads,
        head_size=architecture.head_size,
        dtype=DTYPES[dtype],
        vocabulary=architecture.vocabulary,
    )
