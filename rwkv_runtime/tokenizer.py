"""Text and token ids. An engine needs no tokenizer; calls with text do.

`tokenizer_for` chooses by the size of the model's vocabulary: 256 ids are bytes, 65529 to 65536 are
RWKV World, whose vocabulary comes with the package `pyrwkv-tokenizer`. Encoding is exact (decoding
gives the text back); decoding accepts every id of the model, also those that no text has: the end
of a text is empty, an unused id becomes U+FFFD.
"""

from __future__ import annotations

import ast
import codecs
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Protocol

import pyrwkv_tokenizer

from rwkv_runtime.errors import TokenizerError, VocabularyError

WORLD_VOCABULARY = "rwkv_vocab_v20230424.txt"
WORLD_LAST_ID = 65529
REPLACEMENT = "\ufffd".encode()


class Tokenizer(Protocol):
    """Text to token ids and back. Safe to share between threads."""

    @property
    def name(self) -> str:
        """As an option names it."""

    @property
    def vocabulary(self) -> int:
        """How many ids there are: 0 up to, not including, this."""

    @property
    def end_token(self) -> int | None:
        """The id that ends a text."""

    def encode(self, text: str) -> list[int]:
        """Raises TokenizerError where `text` is no Unicode text (a lone surrogate)."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD. Raises VocabularyError."""

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """The bytes, which may end inside a character. Raises VocabularyError."""


class ByteTokenizer:
    """Each byte of the UTF-8 text is a token."""

    name = "bytes"
    end_token: int | None = None

    def __init__(self, vocabulary: int = 256) -> None:
        self.vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """One id per byte."""
        return list(_utf8(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """See `Tokenizer`."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """See `Tokenizer`."""
        checked = _checked(tokens, self.vocabulary)
        return b"".join(bytes((token,)) if token < 256 else REPLACEMENT for token in checked)


class WorldTokenizer:
    """RWKV World: the longest match among 65,529 byte strings; id 0 ends a text.

    The vocabulary is read at the first use, once per process.
    """

    name = "world"
    end_token: int | None = 0

    def __init__(self, vocabulary: int = WORLD_LAST_ID + 1) -> None:
        self.vocabulary = vocabulary
        self._known: dict[int, bytes] = {0: b""}

    def encode(self, text: str) -> list[int]:
        """Greedy: at each byte the longest token that matches."""
        _utf8(text)
        return list(_world_encoder().encode(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """See `Tokenizer`."""
        return self.decode_bytes(tokens).decode(errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """See `Tokenizer`."""
        return b"".join(self._bytes_of(token) for token in _checked(tokens, self.vocabulary))

    # The package decodes whole texts only, and panics on half a character; so not with it.
    def _bytes_of(self, token: int) -> bytes:
        if token not in self._known:
            known = token <= WORLD_LAST_ID
            self._known[token] = _world_entry(token) if known else REPLACEMENT
        return self._known[token]


class TextStream:
    """Turns tokens into text as they come, and never splits a character: text is held back
    until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes; often empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes((token,)))

    def finish(self) -> str:
        """What is still held back, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def tokenizer_for(vocabulary: int, name: str | None = None) -> Tokenizer | None:
    """The tokenizer for a model with that many ids: by `name` ("bytes", "world"), else by the
    number; ``None``: none fits.

    Raises:
        TokenizerError: `name` is unknown, or has more ids than the model.
    """
    if name is None:
        name = _usual_name(vocabulary)
        if name is None:
            return None
    needed = {"bytes": 256, "world": WORLD_LAST_ID}.get(name)
    if needed is None:
        raise TokenizerError(f"tokenizer {name!r} is not known; there are: bytes, world")
    if vocabulary < needed:
        raise TokenizerError(
            f"tokenizer {name!r} needs a vocabulary of {needed} or more; "
            f"the model's is {vocabulary}"
        )
    return ByteTokenizer(vocabulary) if name == "bytes" else WorldTokenizer(vocabulary)


def require_tokenizer(tokenizer: Tokenizer | None, vocabulary: int) -> Tokenizer:
    """`tokenizer`, where text is about to be used.

    Raises:
        TokenizerError: there is none; says what to do.
    """
    if tokenizer is None:
        raise TokenizerError(
            f"no tokenizer is known for a vocabulary of {vocabulary}: "
            "pass token ids instead of text, or name the tokenizer (bytes, world)"
        )
    return tokenizer


def warm_up(tokenizer: Tokenizer | None) -> None:
    """Read the vocabulary now, rather than at the first use: a forked child shares it."""
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode("a"))


def _usual_name(vocabulary: int) -> str | None:
    if vocabulary == 256:
        return "bytes"
    return "world" if WORLD_LAST_ID <= vocabulary <= 65536 else None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"character {error.start} of the text is half of a surrogate pair and has no tokens; "
            "decode the input as UTF-8"
        ) from error


def _checked(tokens: Iterable[int], vocabulary: int) -> Iterable[int]:
    for index, token in enumerate(tokens):
        if not 0 <= token < vocabulary:
            raise VocabularyError(
                f"token {index} is {token}, but the vocabulary ends at {vocabulary - 1}"
            )
        yield token


@cache
def _world_encoder() -> pyrwkv_tokenizer.RWKVTokenizer:
    return pyrwkv_tokenizer.RWKVTokenizer()


@cache
def _world_lines() -> list[bytes]:
    path = Path(pyrwkv_tokenizer.__file__).with_name(WORLD_VOCABULARY)
    return path.read_bytes().rstrip(b"\n").split(b"\n")


def _world_entry(token: int) -> bytes:
    """Line `token` of the vocabulary: the id, a Python literal (str or bytes), its length."""
    line = _world_lines()[token - 1].decode()
    number, literal = line.rsplit(" ", 1)[0].split(" ", 1)
    if int(number) != token:
        raise TokenizerError(
            f"{WORLD_VOCABULARY}: line {token} holds id {number}; reinstall pyrwkv-tokenizer"
        )
    value = ast.literal_eval(literal)
    return value.encode() if isinstance(value, str) else bytes(value)
