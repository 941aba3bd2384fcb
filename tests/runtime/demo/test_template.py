"""The template is a format: the demo model is trained on these bytes."""

from __future__ import annotations

from rwkv_runtime.template import ANSWER, clean_answer, question_segment


def test_a_question_is_written_as_trained() -> None:
    assert question_segment("Where is Ada?") == "\nQ: Where is Ada?\nA:"


def test_line_breaks_in_a_question_become_spaces() -> None:
    assert question_segment(" Where\nis \r\n Ada?\n") == "\nQ: Where is Ada?\nA:"


def test_braces_in_a_question_are_text() -> None:
    assert question_segment("What is {answer}?") == "\nQ: What is {answer}?\nA:"


def test_an_answer_ends_at_its_line() -> None:
    assert clean_answer(ANSWER.format(answer="in the hall") + "Q: more") == "in the hall"
    assert clean_answer(" cut off") == "cut off"
    assert clean_answer("\n") == ""
