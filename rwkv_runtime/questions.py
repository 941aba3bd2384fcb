"""Questions about one document, each from the document's state alone. How they are put to the model
is `rwkv_runtime.template`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rwkv_runtime import template
from rwkv_runtime.generation import Stop
from rwkv_runtime.replies import Replies
from rwkv_runtime.session import Bookmark, Prefill, Progress
from rwkv_runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer and what it cost."""

    question: str
    answer: str
    cached_tokens: int
    computed_tokens: int
    tokenise_s: float  # of document and question
    ttft_s: float  # from token ids to the first new token
    total_s: float
    prefill: Prefill


class Questions:
    """One document to be asked about, which is read with the first question.

    Args:
        document: its text.
        replies: read and answer.
        tokenizer: for the document and the questions.
        progress: told after each chunk.
    """

    def __init__(
        self, document: str, replies: Replies, tokenizer: Tokenizer, progress: Progress | None
    ) -> None:
        began = time.perf_counter()
        self._tokens = tokenizer.encode(document)
        self._tokenise_s = time.perf_counter() - began
        self._replies = replies
        self._tokenizer = tokenizer
        self._progress = progress
        self._bookmark = Bookmark()  # reads the document once even where nothing can be stored

    def answer(self, question: str, max_tokens: int) -> Answer:
        """Answer one question, by so many tokens at most."""
        began = time.perf_counter()
        tokens = self._tokenizer.encode(template.question_segment(question))
        tokenised = time.perf_counter()
        prefill, reply = self._replies.reply(
            [self._tokens, tokens],
            max_tokens=max_tokens,
            stop=Stop.at(template.STOP),
            progress=self._progress,
            named_segments=1,
            bookmark=self._bookmark,
        )
        first = time.perf_counter()
        text = "".join(new.text for new in reply)
        ended = time.perf_counter()
        return Answer(
            question,
            template.clean_answer(text),
            prefill.cached_tokens,
            prefill.computed_tokens,
            tokenise_s=self._tokenise_s + tokenised - began,
            ttft_s=first - tokenised,
            total_s=self._tokenise_s + ended - began,
            prefill=prefill,
        )
