"""Guides for the training: what a block's output should tell, read off by a linear probe.

Recall by bytes alone is learnt late. The probes say what to carry: the subject of the sentence in
hand, from its last byte on; the value, at the sentence's end; and, while answering, the value that
was asked for. They are trained along with the model and are no part of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from rwkv_runtime.demo.batches import NO_TARGET
from rwkv_runtime.demo.corpus import CITIES, CODE_LENGTH, JOBS, PLACES, SUBJECTS, Document, Question
from rwkv_runtime.template import ANSWER, question_segment

WORDS = CITIES + JOBS + PLACES
# A label has one number for the subject, one for a word, one for each digit of a code.
PARTS = [len(SUBJECTS), len(WORDS), *[10] * CODE_LENGTH]
SUBJECT, VALUE = slice(0, 1), slice(1, len(PARTS))


def document_labels(documents: Sequence[Document], length: int) -> Tensor:
    """[B, T, parts] for documents padded on the left to `length`."""
    labels = torch.full((len(documents), length, len(PARTS)), NO_TARGET)
    for row, document in zip(labels, documents, strict=True):
        padding = length - len(document.text)
        for question, (start, end) in zip(document.questions, document.spans, strict=True):
            named = document.text.index(question.subject, start) + len(question.subject)
            row[padding + named - 1 : padding + end, SUBJECT] = subject_label(question)
            row[padding + end - 1, VALUE] = value_label(question.answer)
    return labels


def question_labels(questions: Sequence[Question], length: int) -> Tensor:
    """[Q, U, parts] for questions and answers padded on the right to `length`."""
    labels = torch.full((len(questions), length, len(PARTS)), NO_TARGET)
    for row, question in zip(labels, questions, strict=True):
        text = question_segment(question.text)
        named = text.index(question.subject) + len(question.subject)
        end = len(text + ANSWER.format(answer=question.answer)) - 1
        row[named - 1 : end, SUBJECT] = subject_label(question)
        row[len(text) - 1 : end, VALUE] = value_label(question.answer)
    return labels


def subject_label(question: Question) -> Tensor:
    """[1]"""
    return torch.tensor([SUBJECTS.index(question.subject)])


def value_label(value: str) -> Tensor:
    """[1 + CODE_LENGTH]: a word's number and no digits, or no word and the digits."""
    if value.isdigit():
        return torch.tensor([NO_TARGET, *map(int, value)])
    return torch.tensor([WORDS.index(value)] + [NO_TARGET] * CODE_LENGTH)


def probe_loss(probe: Tensor, stream: Tensor, labels: Tensor, part: slice) -> Tensor:
    """The mean loss of a probe [sum of PARTS, C] on a stream [B, T, C], over the labels' `part`."""
    wanted = (labels[..., part] != NO_TARGET).any(-1)
    scores = (F.layer_norm(stream[wanted], stream.shape[-1:]) @ probe.T).float()
    columns = labels[wanted].unbind(-1)
    pairs = list(zip(torch.split(scores, PARTS, -1), columns, strict=True))[part]
    total = sum(F.cross_entropy(s, c, ignore_index=NO_TARGET, reduction="sum") for s, c in pairs)
    return torch.as_tensor(total) / max(1, int(wanted.sum()))
