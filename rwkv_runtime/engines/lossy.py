"""An engine whose states are kept in fewer bits, and that goes on from just what is kept.

At every chunk end the running state is replaced by its rounded form: cold or warm, stored or not.
So a resumed run still equals a cold one bit for bit; what is lost is lost in both. It is at every
chunk end, and not only where states are saved, because a key names the chunks that led to it and
says nothing of which of their ends were saved. Tokens that are generated one by one are not
rounded, nor are outputs: logits come from the state ahead of its rounding.

A state here is `Kept`: what an engine's own state was rounded to, with that engine's state made
from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rwkv_runtime.engines.base import Engine, EngineState
from rwkv_runtime.engines.rounding import expanded, rounded, rounded_schema
from rwkv_runtime.names import LOSSY, Lossy
from rwkv_runtime.state import from_stored, to_stored
from statestore.errors import SettingsError
from statestore.keys import ChunkRule, Fingerprint
from statestore.schema import Schema, State


@dataclass(frozen=True, slots=True)
class Kept:
    """A running state."""

    engine: EngineState  # what the engine computes with
    stored: State | None  # what it was made from, without output; None after a generated token


class LossyEngine:
    """An `Engine` around another one, which computes.

    Args:
        inner: any engine; its own fingerprint says that it is not lossy.
        lossy: how states are rounded.

    Raises `SettingsError` for a name that is not one of `LOSSY`.
    """

    def __init__(self, inner: Engine, lossy: Lossy) -> None:
        if lossy not in LOSSY:
            raise SettingsError(f"lossy {lossy!r} is not known; there are: {', '.join(LOSSY)}")
        self.inner = inner
        self.lossy: Lossy = lossy
        self.fingerprint: Fingerprint = replace(inner.fingerprint, lossy=lossy)
        self.rule: ChunkRule = inner.rule
        self.vocabulary: int = inner.vocabulary
        self.schema: Schema = rounded_schema(inner.schema, lossy)

    def initial_state(self) -> Kept:
        """The inner one's, as it is: no chunk ends there."""
        return Kept(self.inner.initial_state(), None)

    def prefill(self, tokens: Tensor, state: Kept) -> tuple[Tensor, Kept]:
        """See `Engine`; the state that comes out has been rounded.

        Raises `NumericsError` where it holds NaN or infinity.
        """
        output, after = self.inner.prefill(tokens, state.engine)
        return output, self._settled(after)

    def decode(self, token: int, state: Kept) -> tuple[Tensor, Kept]:
        """See `Engine`; not rounded."""
        output, after = self.inner.decode(token, state.engine)
        return output, Kept(after, None)

    def logits(self, output: Tensor) -> Tensor:
        """See `Engine`."""
        return self.inner.logits(output)

    def to_stored(self, state: Kept, output: Tensor | None) -> State:
        """See `Engine`. A state after a generated token is rounded here."""
        stored = state.stored or self._rounded(state.engine)
        if output is None:
            return stored
        with_output = self.inner.to_stored(state.engine, output).output
        return replace(stored, output=with_output)

    def from_stored(self, stored: State) -> tuple[Kept, Tensor | None]:
        """See `Engine`."""
        with torch.inference_mode():
            kept, _ = from_stored(self.schema, stored)
            tensors = expanded(kept, self.inner.schema, self.lossy)
            whole = to_stored(self.inner.schema, tensors)
        state, output = self.inner.from_stored(replace(whole, output=stored.output))
        return Kept(state, replace(stored, output=None)), output

    def _settled(self, state: EngineState) -> Kept:
        return self.from_stored(self._rounded(state))[0]

    def _rounded(self, state: EngineState) -> State:
        with torch.inference_mode():
            whole, _ = from_stored(self.inner.schema, self.inner.to_stored(state, None))
            return to_stored(self.schema, rounded(whole, self.lossy))
