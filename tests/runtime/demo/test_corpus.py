"""The demo's documents: reproducible, unambiguous, and put to rows of bytes as promised."""

from itertools import combinations
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_runtime.demo.batches import NO_TARGET, PAD, make_batch, question_rows
from rwkv_runtime.demo.corpus import (
    CODE_LENGTH,
    DEMO_FACTS,
    FILLER_PREDICATES,
    FILLER_SUBJECTS,
    LOCKS,
    OBJECTS,
    PEOPLE,
    RELATIONS,
    SUBJECTS,
    Document,
    demo_document,
    make_document,
    narrowed,
    unseen_document,
)
from rwkv_runtime.demo.probes import document_labels, question_labels
from rwkv_runtime.template import ANSWER, clean_answer, question_segment

documents = st.builds(make_document, st.integers(0, 9999).map(Random), st.integers(1, 32))


def subject_of(text: str) -> str:
    """The one subject that a question names."""
    words = text.strip("?").split()
    (subject,) = (w for w in words if w in {*PEOPLE, *OBJECTS, *LOCKS})
    return subject


def test_a_document_is_a_function_of_its_seed() -> None:
    assert make_document(Random(7), 16) == make_document(Random(7), 16)
    assert make_document(Random(7), 16) != make_document(Random(8), 16)


@given(document=documents)
@settings(max_examples=100, deadline=None)
def test_every_answer_stands_in_the_document_after_its_subject(document: Document) -> None:
    for question in document.questions:
        subject = subject_of(question.text)
        sentence = next(
            s for s in document.text.split(". ") if subject in s.replace(",", "").split()
        )
        assert sentence.index(subject) < sentence.index(question.answer)


@given(document=documents)
@settings(max_examples=100, deadline=None)
def test_no_subject_is_asked_about_twice(document: Document) -> None:
    subjects = [subject_of(question.text) for question in document.questions]
    assert len(set(subjects)) == len(subjects)


@pytest.mark.parametrize("facts", [1, 8, 32])
def test_there_is_one_question_for_each_fact(facts: int) -> None:
    assert len(unseen_document(0, facts).questions) == facts


def test_unseen_documents_differ_from_each_other_and_from_training() -> None:
    unseen = {unseen_document(number, 4).text for number in range(200)} | {demo_document(4).text}
    seen = {make_document(Random(step), 4).text for step in range(2000)}
    assert len(unseen) == 201
    assert not unseen & seen


def test_the_demo_document_is_fixed_and_readable() -> None:
    document = demo_document()
    assert document == demo_document()
    assert len(document.questions) == DEMO_FACTS
    assert document.text.isascii()
    assert "\n" not in document.text


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_wordings_name_the_subject_first(relation) -> None:
    assert len(relation.statements) >= 3
    for words in relation.statements:
        assert words.index("S") < words.index("V")
    for words in relation.questions:
        assert "S" in words
        assert "V" not in words.replace("S", "")


def test_pools_have_no_repetitions_and_subjects_are_told_apart() -> None:
    for relation in RELATIONS:
        assert len(set(relation.subjects)) == len(relation.subjects)
        assert relation.values is None or len(set(relation.values)) == len(relation.values)
    fillers = " ".join((*FILLER_SUBJECTS, *FILLER_PREDICATES)).split()
    for first, second in combinations((PEOPLE, OBJECTS, LOCKS, fillers), 2):
        assert not set(first) & set(second)


def test_codes_are_digits() -> None:
    codes = [q.answer for q in unseen_document(1, 32).questions if q.relation == "code"]
    assert codes
    assert all(code.isdigit() and len(code) == CODE_LENGTH for code in codes)


def test_targets_mark_exactly_the_answers_bytes() -> None:
    questions = unseen_document(3, 8).questions
    rows, targets = question_rows(questions)
    for question, row, target in zip(questions, rows, targets, strict=True):
        wanted = target != NO_TARGET
        answer = bytes(target[wanted].tolist()).decode()
        assert answer == ANSWER.format(answer=question.answer)
        assert clean_answer(answer) == question.answer
        asked = question_segment(question.text).encode()
        assert bytes(row[: len(asked)].tolist()) == asked
        # What is read at each wanted place is the byte before the one that is wanted.
        assert bytes(row[wanted].tolist()).decode() == ":" + answer[:-1]


def test_documents_end_where_their_state_is_taken() -> None:
    drawn = [unseen_document(number, 5) for number in range(3)]
    batch = make_batch(Random(0), drawn, asked=2)
    assert batch.questions.shape[0] == 6
    for document, row, target in zip(drawn, batch.documents, batch.document_targets, strict=True):
        text = document.text.encode()
        assert bytes(row[-len(text) :].tolist()) == text
        assert (row[: -len(text)] == PAD).all()
        assert target[-1] == NO_TARGET
        assert torch.equal(target[-len(text) : -1], row[1 - len(text) :])


def test_labels_name_the_subject_and_the_value_where_they_are_known() -> None:
    drawn = [unseen_document(number, 3) for number in range(2)]
    batch = make_batch(Random(0), drawn, asked=3)
    labels = document_labels(batch.read, batch.documents.shape[1])
    for document, row, read in zip(drawn, labels, batch.documents, strict=True):
        text = bytes(read.tolist()).decode()
        ends = (row[:, 1:] != NO_TARGET).any(-1).nonzero()[:, 0].tolist()
        assert len(ends) == len(document.questions)
        for question, end in zip(document.questions, ends, strict=True):
            assert text[: end + 1].endswith(question.answer + ".")
            assert SUBJECTS[row[end, 0]] == question.subject


def test_labels_of_a_question_last_through_its_answer() -> None:
    questions = unseen_document(5, 6).questions
    rows, targets = question_rows(questions)
    labels = question_labels(questions, rows.shape[1])
    valued = (labels[..., 1:] != NO_TARGET).any(-1)
    assert torch.equal(valued, targets != NO_TARGET)
    for question, label in zip(questions, labels, strict=True):
        assert {SUBJECTS[n] for n in label[:, 0].tolist() if n != NO_TARGET} == {question.subject}


@given(seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_narrowed_values_are_easily_confused(seed: int) -> None:
    rng = Random(seed)
    relations = tuple(narrowed(rng, relation) for relation in RELATIONS)
    for relation in relations:
        if relation.values is None:
            assert len(set(relation.digits)) == 2
        else:
            assert len({value[0] for value in relation.values}) == 1
