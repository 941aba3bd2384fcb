"""Texts that follow prompts: a session reads the prompt, its engine adds token after token.

What a reading leaves to be done waits for the first token alone: the state that the next prompt
begins with is on its way to the store while the rest of the text is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from rwkv_runtime.generation import Generated, Stop, generate
from rwkv_runtime.sampling import GREEDY, Sampling
from rwkv_runtime.session import Bookmark, Prefill, Progress, Session
from rwkv_runtime.session.behind import Later
from rwkv_runtime.tokenizer import Tokenizer
from statestore.keys import Tokens


class Replies:
    """New tokens over one session. Safe to use from several threads if the engine is.

    Args:
        session: reads the prompts.
        tokenizer: for text; without one every `Generated.text` is "".
    """

    def __init__(self, session: Session, tokenizer: Tokenizer | None) -> None:
        self._session = session
        self._tokenizer = tokenizer

    def reply(
        self,
        segments: Sequence[Tokens],
        *,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        stop: Stop | None = None,
        progress: Progress | None = None,
        named_segments: int = 0,
        grows: bool = False,
        bookmark: Bookmark | None = None,
    ) -> tuple[Prefill, Iterator[Generated]]:
        """Read a prompt and choose the first token; the iterator yields that one and the others.

        Args and errors as for `Session.read` and `generate`.
        """
        prefill, later = self._session.read(
            segments, progress, named_segments=named_segments, grows=grows, bookmark=bookmark
        )
        new = self.go_on(prefill, max_tokens=max_tokens, sampling=sampling, stop=stop)
        return prefill, self._after_first(new, later)

    def go_on(
        self, prefill: Prefill, *, max_tokens: int, sampling: Sampling, stop: Stop | None
    ) -> Iterator[Generated]:
        """New tokens after a prompt that has been read; `prefill` itself stays as it is."""
        return generate(
            self._session.engine,
            prefill.state,
            prefill.logits,
            tokenizer=self._tokenizer,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop or Stop(),
        )

    def _after_first(self, new: Iterator[Generated], later: Iterable[Later]) -> Iterator[Generated]:
        """`new` as it is, its first token chosen by now, and `later` submitted after that."""
        try:
            first = list(islice(new, 1))
        finally:
            self._session.submit(later, wait=False)  # somebody waits for the second token
        return _chained(first, new)


def _chained(first: list[Generated], rest: Iterator[Generated]) -> Iterator[Generated]:
    """A generator, so that its reader may close it."""
    yield from first
    yield from rest
