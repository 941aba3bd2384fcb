"""Documents and questions as rows of bytes, and a state for each question.

Documents are padded on the left, since a state is what follows the last byte; questions, which
nothing follows, on the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from rwkv_runtime.demo.corpus import Document, Question
from rwkv_runtime.model import LayerState, ModelState
from rwkv_runtime.template import ANSWER, question_segment

PAD = ord("\n")
# Few distinct lengths: bf16 products are compiled for each shape that they meet.
DOCUMENT_STEP = 32
QUESTION_STEP = 8
NO_TARGET = -100  # what cross_entropy skips


@dataclass(frozen=True, slots=True)
class Batch:
    """B documents with Q questions each, in the documents' order."""

    documents: Tensor  # [B, T]
    document_targets: Tensor  # [B, T], the byte that follows each
    questions: Tensor  # [B * Q, U], question and answer
    answer_targets: Tensor  # [B * Q, U], the byte that follows, where it belongs to the answer
    read: tuple[Document, ...]  # the documents themselves
    asked: tuple[Question, ...]

    def to(self, device: str) -> "Batch":
        """The same on another device."""
        names = ("documents", "document_targets", "questions", "answer_targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def make_batch(rng: Random, documents: Sequence[Document], asked: int) -> Batch:
    """Ask `asked` questions of each document, drawn without replacement."""
    picked = [
        question for document in documents for question in rng.sample(document.questions, asked)
    ]
    texts = [document.text.encode() for document in documents]
    longest = _round_up(max(map(len, texts)), DOCUMENT_STEP)
    rows = torch.tensor([[PAD] * (longest - len(text)) + list(text) for text in texts])
    following = torch.tensor(
        [[NO_TARGET] * (longest - len(text)) + [*text[1:], NO_TARGET] for text in texts]
    )
    return Batch(rows, following, *question_rows(picked), tuple(documents), tuple(picked))


def question_rows(questions: Sequence[Question]) -> tuple[Tensor, Tensor]:
    """Questions with their answers, and the targets: both [Q, U]."""
    pairs = [
        (question_segment(question.text).encode(), ANSWER.format(answer=question.answer).encode())
        for question in questions
    ]
    longest = _round_up(max(len(q) + len(a) for q, a in pairs) - 1, QUESTION_STEP)
    rows, targets = [], []
    for asked, answer in pairs:
        row = asked + answer[:-1]
        rest = longest - len(row)
        rows.append(list(row) + [PAD] * rest)
        targets.append([NO_TARGET] * (len(asked) - 1) + list(answer) + [NO_TARGET] * rest)
    return torch.tensor(rows), torch.tensor(targets)


def fork(state: ModelState, times: int) -> ModelState:
    """Each row of the state `times` times, side by side."""
    return tuple(
        LayerState(
            layer.att_x_prev.repeat_interleave(times, 0),
            layer.att_kv.repeat_interleave(times, 0),
            layer.ffn_x_prev.repeat_interleave(times, 0),
        )
        for layer in state
    )


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step
