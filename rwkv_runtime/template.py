r"""How a question about a document is put to a model, and where its answer ends. The demo model is
trained on exactly this.

    <document>              segment 1, as it is
    \nQ: {question}\nA:     segment 2, `question_segment`
     {answer}\n             what the model writes: a space, the answer on one line, and STOP

The question begins with the line break that ends the document's last line, so a document needs no
ending of its own.
"""

from __future__ import annotations

QUESTION = "\nQ: {question}"
PROMPT = "\nA:"
ANSWER = " {answer}\n"
STOP = "\n"


def question_segment(question: str) -> str:
    """The text that follows the document, up to where the answer begins."""
    return question_line(question) + PROMPT


def question_line(question: str) -> str:
    """The question alone. Line breaks inside it become spaces: they would end it."""
    return QUESTION.format(question=" ".join(question.split()))


def clean_answer(text: str) -> str:
    """What was answered: everything before STOP, without the spaces around it."""
    return text.split(STOP, 1)[0].strip()
