"""New tokens, one after the other, from a state and the logits of its last token.

The first token costs no computing: its logits are there already. Text is passed on as soon as it
can no longer become part of a stop text, and never in the middle of a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from rwkv_runtime.engines import Engine, EngineState
from rwkv_runtime.sampling import Penalties, Sampling, sample
from rwkv_runtime.tokenizer import TextStream, Tokenizer, require_tokenizer

Ending: TypeAlias = Literal["stop", "length"]


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
    text = Continuation(tokenizer, max_tokens, sampling, stop)
    while text.ended is None:
        new = text.take(text.choose(logits))
        if new is not None:
            yield new
        if text.ended is None:
            with torch.inference_mode():
                output, state = engine.decode(text.token, state)
                logits = engine.logits(output)


class Continuation:
    """One text on its way: chooses its tokens, frees its characters, knows when it ends. It
    computes nothing, so that one thread may carry many on.

    Attributes:
        token: the last one, end tokens included; -1 before the first.
        count: of tokens so far, without an end token.
        ended: why nothing follows; ``None``: something does.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, max_tokens: int, sampling: Sampling, stop: Stop
    ) -> None:
        self.token = -1
        self.count = 0
        self.ended: Ending | None = None if max_tokens > 0 else "length"
        self.sampling = sampling
        self._max_tokens = max_tokens
        self._generator = sampling.generator()
        self._endings = stop.tokens | _end_tokens(tokenizer)
        self._text = _StoppedText(tokenizer, stop.texts)
        self._penalties = Penalties(sampling)

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is the one to take, whatever came before."""
        return self.sampling.temperature == 0 and not self.sampling.penalises

    def choose(self, logits: Tensor) -> int:
        """The token to take. Raises `NumericsError` where the logits hold NaN or infinity."""
        return sample(self._penalties.apply(logits), self.sampling, self._generator)

    def take(self, token: int) -> Generated | None:
        """Continue with `token`; returns what can be shown of it, ``None`` for an end token that
        frees no text.
        """
        self._penalties.count(token)
        self.token = token
        if token in self._endings:
            self.ended = "stop"
            held = self._text.rest()
            return Generated(token, held) if held else None
        self.count += 1
        piece = self._text.push(token)
        if self._text.stopped:
            self.ended = "stop"
        elif self.count == self._max_tokens:
            self.ended = "length"
            piece += self._text.rest()
        return Generated(token, piece)


def _end_tokens(tokenizer: Tokenizer | None) -> frozenset[int]:
    if tokenizer is None or tokenizer.end_token is None:
        return frozenset()
    return frozenset({tokenizer.end_token})


class _StoppedText:
    """Text from tokens up to the first stop text; holds back what may yet become part of one."""

    def __init__(self, tokenizer: Tokenizer | None, stops: tuple[str, ...]) -> None:
        self.stopped = False
        self._stream = TextStream(tokenizer) if tokenizer is not None else None
        self._stops = [_Begun(stop) for stop in stops if stop]
        self._held = ""

    def push(self, token: int) -> str:
        """The text that `token` frees."""
        if self._stream is None:
            return ""
        new = self._stream.push(token)
        text = self._held + new
        places = [len(text) - left for stop in self._stops if (left := stop.push(new)) is not None]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((stop.length for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._held + (self._stream.finish() if self._stream is not None else "")


class _Begun:
    """How much of a stop text the text so far ends with, by Knuth, Morris and Pratt: each character
    is looked at once, so that no stop text, however long, delays other streams.

    Attributes:
        length: of the longest end of the text that begins the stop text.
    """

    def __init__(self, stop: str) -> None:
        self.length = 0
        self._stop = stop
        self._borders: list[int] = [0]  # of each beginning, as far as it was needed

    def push(self, new: str) -> int | None:
        """Go on by `new`; how many characters before its end the stop text began, once it is
        whole.
        """
        for place, character in enumerate(new):
            self.length = self._grown(self.length, character)
            if self.length == len(self._stop):
                return len(new) - place - 1 + self.length
            if self.length > len(self._borders):
                border = self._grown(self._borders[-1], self._stop[len(self._borders)])
                self._borders.append(border)
        return None

    def _grown(self, length: int, character: str) -> int:
        """The longest beginning that ends with `character`, after one of `length`."""
        while length and self._stop[length] != character:
            length = self._borders[length - 1]
        return length + (self._stop[length] == character)
