"""Documents and questions as rows of bytes, and a state for each question.

Documents are padded on the left, since a state is what follows the last byte; questions, which
nothing follows, on the right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from random import Random

import torch
from torch import Tensor

from rwkv_runtime.demo.corpus import SUBJECTS, Document, Question
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
    # The number of the subject that the sentence or question is about, from its last byte on.
    document_subjects: Tensor  # [B, T]
    question_subjects: Tensor  # [B * Q, U]

    def to(self, device: str) -> "Batch":
        """The same on another device."""
        return Batch(*(getattr(self, entry.name).to(device) for entry in fields(self)))


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
    subjects = torch.stack([_document_subjects(document, longest) for document in documents])
    questions, answers = question_rows(picked)
    asked_about = torch.stack([_question_subject(q, questions.shape[1]) for q in picked])
    return Batch(rows, following, questions, answers, subjects, asked_about)


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


def _document_subjects(document: Document, longest: int) -> Tensor:
    """[longest]: the subject's number from its last byte to its sentence's end."""
    numbers = torch.full((longest,), NO_TARGET)
    padding = longest - len(document.text)
    for question, (start, end) in zip(document.questions, document.spans, strict=True):
        named = document.text.index(question.subject, start) + len(question.subject)
        numbers[padding + named - 1 : padding + end] = SUBJECTS.index(question.subject)
    return numbers


def _question_subject(question: Question, longest: int) -> Tensor:
    """[longest]: the subject's number from its last byte to the answer's end."""
    numbers = torch.full((longest,), NO_TARGET)
    text = question_segment(question.text)
    named = text.index(question.subject) + len(question.subject)
    end = len(text + ANSWER.format(answer=question.answer)) - 1
    numbers[named - 1 : end] = SUBJECTS.index(question.subject)
    return numbers


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step
