"""The port of an engine: everything that a session needs from a model, and no more.

An engine of your own is a class with these members; it need not inherit. A complete one, which
expects the tokens that came last to come again:

    class Recency:
        vocabulary = 256
        rule = ChunkRule(chunk=64, min_chunk=8)
        schema = Schema("recency/256", (TensorSpec("seen", DType.F32, (256,)),), 256, 256)
        fingerprint = Fingerprint(
            weights_digest="00",  # it has no weights; a digest of everything that was learnt
            architecture="recency",
            shapes=(("vocabulary", 256),),
            engine="example",
            revision=1,
            device="cpu",
            dtype="fp32",
            chunk=rule.chunk,
            min_chunk=rule.min_chunk,
        )

        def initial_state(self):
            return torch.zeros(256)

        def prefill(self, tokens, state):
            check_tokens(tokens, self.vocabulary)
            for token in tokens.tolist():
                output, state = self.decode(token, state)
            return output, state

        def decode(self, token, state):
            seen = 0.5 * state  # a new tensor: the state that was given stays as it is
            seen[token] += 1
            return seen, seen

        def logits(self, output):
            return output.clone()

        def to_stored(self, state, output):
            return to_stored(self.schema, {"seen": state}, output, output_name=OUTPUT_LOGITS)

        def from_stored(self, stored):
            tensors, output = from_stored(self.schema, stored)
            return tensors["seen"], output
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from torch import Tensor

from rwkv_runtime.errors import VocabularyError
from statestore.keys import ChunkRule, Fingerprint
from statestore.schema import Schema, State

EngineState: TypeAlias = Any  # the engine's own; a session only hands it around


class Engine(Protocol):
    """Computes outputs and states from tokens.

    **States are values.** No method writes to a state, an output or a stored buffer that it was
    given, nor later to one that it has returned. So one state may serve any number of sessions and
    threads.

    **Bits.** `prefill` is one chunk: its results are a function of the state's bits and the tokens
    alone, the same in every process with this `fingerprint`. `logits` likewise, whether its output
    was just computed or came back from a store. A change of bits is a change of the fingerprint's
    `revision`.

    **Threads.** Every method may be called from several threads at once.
    """

    @property
    def fingerprint(self) -> Fingerprint:
        """All that decides a state's value besides the tokens."""

    @property
    def rule(self) -> ChunkRule:
        """How prompts are cut into chunks; the fingerprint holds the same sizes."""

    @property
    def schema(self) -> Schema:
        """What a stored state consists of."""

    @property
    def vocabulary(self) -> int:
        """Token ids are 0 up to, not including, this."""

    def initial_state(self) -> EngineState:
        """The state before the first token."""

    def prefill(self, tokens: Tensor, state: EngineState) -> tuple[Tensor, EngineState]:
        """Read one chunk: int64 [T], T >= 1 -> (the last token's output [n], the state after it).

        Raises:
            VocabularyError: names the first token that the model does not have.
        """

    def decode(self, token: int, state: EngineState) -> tuple[Tensor, EngineState]:
        """Read one token that was just generated; as `prefill`. Its states are not stored by
        prefix.
        """

    def logits(self, output: Tensor) -> Tensor:
        """What comes next after `output`: float32 [vocabulary]."""

    def to_stored(self, state: EngineState, output: Tensor | None) -> State:
        """The state as it is stored, with the output where that is wanted. May share memory
        with both.
        """

    def from_stored(self, stored: State) -> tuple[EngineState, Tensor | None]:
        """The reverse, bit for bit. May share memory with `stored`, which is never written to.

        Raises:
            StateError: not a state of `schema`.
        """


def check_tokens(tokens: Tensor, vocabulary: int, first: int = 0) -> None:
    """Raise VocabularyError for the first id outside 0..vocabulary - 1; `first` is the index of
    tokens[0].
    """
    if tokens.numel() == 0:
        raise VocabularyError("no tokens: a chunk holds at least one")
    low, high = (int(limit) for limit in tokens.aminmax())
    if low < 0 or high >= vocabulary:
        outside = (tokens < 0) | (tokens >= vocabulary)
        index = int(outside.nonzero()[0, 0])
        raise VocabularyError(
            f"token {first + index} is {int(tokens[index])}, but the model's ids are "
            f"0 to {vocabulary - 1}: does the tokenizer belong to this model?"
        )
