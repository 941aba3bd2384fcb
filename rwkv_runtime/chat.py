r"""Conversations as prompts: a piece of text for each message, written the same way on every turn.

What was read for one turn is found again on the next, because the next turn's segments begin with
this one's: a message's text depends on that message alone, and the prompt that calls for a reply is
a segment of its own, which comes again before the reply.

    world   System: {text}\n\n    User: {text}\n\n    Assistant:     {text}\n\n
    qa      {text}                \nQ: {text}         \nA:           {text}

The last two columns are an assistant's message: the prompt, then a space and its text. Pass
``grows=True`` to the runtime with these segments; then the state that the next turn begins from is
kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from rwkv_runtime.template import PROMPT, STOP, question_line
from rwkv_runtime.tokenizer import Tokenizer
from statestore.errors import InputError

ROLES: Final = ("system", "user", "assistant")

_BLANK_LINES: Final = re.compile(r"\n(?:[^\S\n]*\n)+")


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said. Raises InputError for another role than system, user and assistant."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InputError(f"role {self.role!r} is not known; there are: {', '.join(ROLES)}")


class ChatTemplate(Protocol):
    """How messages become the segments of a prompt. Pure, and safe to share."""

    @property
    def name(self) -> str:
        """As an option names it."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply; the first to come is no part of it."""

    def segments(self, messages: Sequence[Message]) -> list[str]:
        """The texts, in order; the last is the prompt that calls for a reply.

        A message is one text, an assistant's two. Messages that go on from others give their texts
        and more: `segments(m)` begins `segments([*m, reply, ...])`.

        Raises:
            InputError: there are no messages, or a user's says nothing.
        """


@dataclass(frozen=True, slots=True)
class _Written:
    """A template by the texts around each message."""

    name: str
    stops: tuple[str, ...]
    prompt: str  # calls for a reply
    system: Callable[[str], str] = field(repr=False)
    user: Callable[[str], str] = field(repr=False)
    assistant: Callable[[str], str] = field(repr=False)  # what follows `prompt`

    def segments(self, messages: Sequence[Message]) -> list[str]:
        """See `ChatTemplate`."""
        if not messages:
            raise InputError("no messages: a chat begins with at least one")
        texts = [text for i, message in enumerate(messages) for text in self._texts(i, message)]
        return [*texts, self.prompt]

    def _texts(self, index: int, message: Message) -> tuple[str, ...]:
        if message.role == "assistant":
            return (self.prompt, self.assistant(message.content))
        if message.content.strip():
            write = self.system if message.role == "system" else self.user
            return (write(message.content),)
        if message.role == "system":
            return ()
        raise InputError(f"message {index} of the chat is the user's and says nothing")


def template(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    """The template by its name: "world", "qa", or "auto" for the one that suits `tokenizer` (the
    demo model's texts are bytes, and it knows "qa" only).

    Raises:
        InputError: `name` is not known.
    """
    if name == "auto":
        return QA if tokenizer.name == "bytes" else WORLD
    if name not in TEMPLATES:
        raise InputError(f"chat template {name!r} is not known; there are: {', '.join(NAMES)}")
    return TEMPLATES[name]


def _paragraph(text: str) -> str:
    """`text` without the blank lines that would end a message."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    return _BLANK_LINES.sub("\n", lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _spaced(text: str) -> str:
    return f" {text}" if text else ""


#: RWKV World and its successors. The blank line is what they learnt as the end of a message, but a
#: reply may hold one all the same, so it ends only where the next message begins.
WORLD: Final[ChatTemplate] = _Written(
    name="world",
    stops=tuple(f"\n\n{role.capitalize()}:" for role in ROLES),
    prompt="Assistant:",
    system=lambda text: f"System: {_paragraph(text)}\n\n",
    user=lambda text: f"User: {_paragraph(text)}\n\n",
    assistant=lambda text: f"{_spaced(_paragraph(text))}\n\n",
)

#: The demo model's: `rwkv_runtime.template`, a system message being the document.
QA: Final[ChatTemplate] = _Written(
    name="qa",
    stops=(STOP,),
    prompt=PROMPT,
    system=lambda text: text,
    user=question_line,
    assistant=lambda text: _spaced(_line(text)),
)

TEMPLATES: Final = {each.name: each for each in (WORLD, QA)}
NAMES: Final = ("auto", *TEMPLATES)
