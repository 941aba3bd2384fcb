"""New tokens, one after the other, from a state and the logits of its last token.

The first token costs no computing: it is drawn from logits that are at hand. Text is passed on as
soon as it can no longer become part of a stop text, and never in the middle of a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rwkv_runtime.engines import Engine, EngineState
from rwkv_runtime.sampling import Penalties, Sampling, sample
from rwkv_runtime.tokenizer import TextStream, Tokenizer, require_tokenizer


@dataclass(frozen=True, slots=True)
class Stop:
    """What ends a text, besides the tokenizer's end token."""

    texts: tuple[str, ...] = ()  # the first to come is no part of the text; needs a tokenizer
    tokens: frozenset[int] = frozenset()

    @classmethod
    def at(cls, *texts: str) -> Stop:
        """At the first of `texts`; empty ones mean nothing."""
        return cls(tuple(text for text in texts if text))


@dataclass(frozen=True, slots=True)
class Generated:
    """One new token and the text that can be shown since the one before; "" while a character is
    open.
    """

    token: int
    text: str


def generate(
    engine: Engine,
    state: EngineState,
    logits: Tensor,
    *,
    tokenizer: Tokenizer | None,
    max_tokens: int,
    sampling: Sampling,
    stop: Stop,
) -> Iterator[Generated]:
    """Yield up to `max_tokens` tokens. `state` stays as it is: every step makes a new one.

    Args:
        engine: reads each new token.
        state: after the prompt.
        logits: float32 [vocabulary], of the prompt's last token.
        tokenizer: for text; without one every `Generated.text` is "".
        max_tokens: at most so many; reading ends one token earlier, as nobody needs the last state.
        sampling: how to choose; its seed makes the whole text repeatable.
        stop: what ends the text early. A stop or end token is not yielded, unless text was held
            back until it came.

    Raises:
        NumericsError: the logits hold NaN or infinity.
        TokenizerError: a stop text, and no tokenizer.
    """
    if stop.texts:
        require_tokenizer(tokenizer, len(logits))
    generator = sampling.generator()
    endings = stop.tokens | _end_tokens(tokenizer)
    text = _StoppedText(tokenizer, stop.texts)
    penalties = Penalties(sampling)
    for count in range(1, max_tokens + 1):
        token = sample(penalties.apply(logits), sampling, generator)
        penalties.count(token)
        if token in endings:
            held = text.rest()
            if held:
                yield Generated(token, held)
            return
        piece = text.push(token)
        if text.stopped:
            yield Generated(token, piece)
            return
        if count == max_tokens:
            yield Generated(token, piece + text.rest())
            return
        yield Generated(token, piece)
        with torch.inference_mode():
            output, state = engine.decode(token, state)
            logits = engine.logits(output)


def _end_tokens(tokenizer: Tokenizer | None) -> frozenset[int]:
    if tokenizer is None or tokenizer.end_token is None:
        return frozenset()
    return frozenset({tokenizer.end_token})


class _StoppedText:
    """Text from tokens up to the first stop text; holds back what may yet become part of one."""

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...]) -> None:
        self.stopped = False
        self._stream = TextStream(tokenizer) if tokenizer is not None else None
        self._stops = stops
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` frees."""
        if self._stream is None:
            return ""
        text = self._held + self._stream.push(token)
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._held + (self._stream.finish() if self._stream is not None else "")


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
