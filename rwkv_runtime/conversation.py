"""A conversation with a model: what was said, and the next reply.

Each turn reads what the one before left in the store and goes on from there: of what was said, only
the last reply is read again, and a rest too short for a chunk. So a conversation costs the same at
its hundredth turn as at its first, and goes on in another process.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from rwkv_runtime.chat import ChatTemplate, Message, template
from rwkv_runtime.generation import Stop
from rwkv_runtime.runtime import Runtime
from rwkv_runtime.sampling import GREEDY, Sampling
from rwkv_runtime.session import Progress


@dataclass(frozen=True, slots=True)
class TurnCost:
    """What a reply cost before its first token came."""

    cached_tokens: int
    computed_tokens: int
    ttft_s: float  # from token ids to the first new token


class Conversation:
    """Messages and a runtime. For one thread.

    Args:
        runtime: reads and writes; closed by the caller.
        messages: what was said before: the system's words, a document, a history.
        chat: how messages are written; by default as the runtime's tokenizer suggests.
        max_tokens: of each reply.
        sampling: how to choose a token.

    Attributes:
        messages: all that was said.
        cost: of the newest reply; ``None`` while its prompt is being read, or where none came.
    """

    def __init__(
        self,
        runtime: Runtime,
        messages: Sequence[Message] = (),
        *,
        chat: ChatTemplate | None = None,
        max_tokens: int = 512,
        sampling: Sampling = GREEDY,
    ) -> None:
        self.messages = list(messages)
        self.cost: TurnCost | None = None
        self._runtime = runtime
        self._chat = chat or template("auto", runtime.tokenizer)
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._tokens: dict[str, list[int]] = {}  # a history is tokenised once

    def say(self, text: str, *, progress: Progress | None = None) -> Generator[str, None, None]:
        """Say something; the reply, piece by piece.

        What has come of a reply when its reader stops, or is interrupted, is said and stays; where
        nothing has come, nothing was said.

        Raises:
            InputError: `text` says nothing.
        """
        self.cost = None
        asked = [*self.messages, Message("user", text)]
        segments = self._tokenise(self._chat.segments(asked))
        began = time.perf_counter()
        prefill, new = self._runtime.reply(
            segments,
            max_tokens=self._max_tokens,
            sampling=self._sampling,
            stop=Stop.at(*self._chat.stops),
            grows=True,
            progress=progress,
        )
        ttft_s = time.perf_counter() - began
        self.cost = TurnCost(prefill.cached_tokens, prefill.computed_tokens, ttft_s)
        del prefill  # a state, which would live as long as the reply is read
        said, whole = "", False
        try:
            for piece in new:
                text = piece.text if said else piece.text.lstrip()
                said += text
                yield text
            whole = True
        finally:
            if said or whole:
                self.messages = [*asked, Message("assistant", said.strip())]
            else:
                self.cost = None

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        encode = self._runtime.tokenizer.encode
        self._tokens = {t: self._tokens[t] if t in self._tokens else encode(t) for t in texts}
        return [self._tokens[text] for text in texts]
