"""Messages become segments that come again, letter by letter, on every later turn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkv_runtime.chat import NAMES, QA, TEMPLATES, WORLD, ChatTemplate, Message, template
from rwkv_runtime.template import question_segment
from rwkv_runtime.tokenizer import tokenizer_for
from statestore.errors import InputError

contents = st.text().filter(str.strip)
messages = st.builds(Message, st.sampled_from(("system", "user", "assistant")), contents)
templates = pytest.mark.parametrize("written", TEMPLATES.values(), ids=TEMPLATES)


def test_world_is_written_as_its_models_learnt_it() -> None:
    chat = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yo."),
        Message("user", "Bye"),
    ]
    assert WORLD.segments(chat) == [
        "System: Be brief.\n\n",
        "User: Hi\n\n",
        "Assistant:",
        " Yo.\n\n",
        "User: Bye\n\n",
        "Assistant:",
    ]


def test_a_question_about_a_document_is_written_as_the_demo_model_learnt_it() -> None:
    first, *rest = QA.segments([Message("system", "Ada is\n here.\n"), Message("user", "Where?")])
    assert first == "Ada is\n here.\n"
    assert "".join(rest) == question_segment("Where?")


@templates
@given(history=st.lists(messages, min_size=1, max_size=6), more=st.lists(messages, max_size=4))
def test_a_turn_begins_with_all_of_the_turn_before(
    written: ChatTemplate, history: list[Message], more: list[Message]
) -> None:
    before = written.segments(history)
    after = written.segments([*history, Message("assistant", "So it is."), *more])
    assert after[: len(before)] == before
    assert after[-1] == before[-1]


@templates
@given(history=st.lists(messages, min_size=1, max_size=6))
def test_a_message_is_written_the_same_way_wherever_it_stands(
    written: ChatTemplate, history: list[Message]
) -> None:
    alone = [text for message in history for text in written.segments([message])[:-1]]
    assert written.segments(history)[:-1] == alone


@given(history=st.lists(messages, min_size=1, max_size=6))
def test_no_message_can_end_itself(history: list[Message]) -> None:
    whole = "".join(WORLD.segments(history))
    assert whole.count("\n\n") == len(history)
    asked = [message for message in history if message.role == "user"]
    if asked:
        assert "".join(QA.segments(asked)).count("\n") == len(asked) + 1


@pytest.mark.parametrize("blank", ["\n\n", "\n\n\n", "\r\n\r\n", "\n \t\n", "\r\r"])
def test_blank_lines_become_line_breaks_and_indents_stay(blank: str) -> None:
    assert WORLD.segments([Message("user", f" a{blank}  b\n")])[0] == "User: a\n  b\n\n"


def test_a_reply_that_says_nothing_is_history_too() -> None:
    chat = [Message("user", "a"), Message("assistant", ""), Message("user", "b")]
    assert WORLD.segments(chat)[1:3] == ["Assistant:", "\n\n"]
    assert QA.segments(chat)[1:3] == ["\nA:", ""]


def test_an_empty_system_message_is_none() -> None:
    assert WORLD.segments([Message("system", " "), Message("user", "a")])[0] == "User: a\n\n"


def test_what_cannot_be_a_chat_is_refused() -> None:
    with pytest.raises(InputError, match=r"role 'tool' is not known.*system, user, assistant"):
        Message("tool", "x")
    with pytest.raises(InputError, match="no messages"):
        WORLD.segments([])
    with pytest.raises(InputError, match="message 1 of the chat is the user's and says nothing"):
        WORLD.segments([Message("user", "a"), Message("user", "\n")])


def test_templates_are_chosen_by_name_or_by_tokenizer() -> None:
    bytes_, world = tokenizer_for(256), tokenizer_for(65536)
    assert bytes_ is not None
    assert world is not None
    assert [template("auto", bytes_), template("auto", world)] == [QA, WORLD]
    assert [template(name, world).name for name in NAMES[1:]] == ["world", "qa"]
    with pytest.raises(InputError, match="'chatml' is not known; there are: auto, world, qa"):
        template("chatml", world)


def test_segments_of_world_are_the_tokens_of_the_whole_text() -> None:
    """So a model reads what it learnt to read, though each segment is tokenised on its own."""
    world = tokenizer_for(65536)
    assert world is not None
    chat = [Message("system", "Brief!"), Message("user", "Hi?"), Message("assistant", "Yes, so.")]
    texts = WORLD.segments([*chat, Message("user", "你好")])
    tokens = [token for text in texts for token in world.encode(text)]
    assert tokens == world.encode("".join(texts))
