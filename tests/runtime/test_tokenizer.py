"""Both tokenizers: exact round trips, agreement with the published one, and hard ids."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest
import rwkv.rwkv_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from rwkv_runtime.errors import TokenizerError, VocabularyError
from rwkv_runtime.tokenizer import (
    ByteTokenizer,
    TextStream,
    Tokenizer,
    WorldTokenizer,
    require_tokenizer,
    tokenizer_for,
)


class Published(Protocol):
    idx2token: dict[int, bytes]

    def encode(self, src: str) -> list[int]: ...


@pytest.fixture(scope="module")
def published() -> Published:
    """The tokenizer that the rwkv package brings, in plain Python."""
    vocabulary = Path(rwkv.rwkv_tokenizer.__file__).with_name("rwkv_vocab_v20230424.txt")
    tokenizer: Published = rwkv.rwkv_tokenizer.TRIE_TOKENIZER(str(vocabulary))
    return tokenizer


WORLD = WorldTokenizer()
BYTES = ByteTokenizer()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Pieces that real text is made of, so that long tokens occur too.
words = st.lists(
    st.sampled_from(
        ["the ", "Hello", " world", "\n\n", "世界", "🎉", "  ", "0123", "\x00", "é", "of "]
    )
).map("".join)


@pytest.mark.parametrize("tokenizer", [WORLD, BYTES], ids=["world", "bytes"])
@given(text=texts | words)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode_bytes(tokens) == text.encode()
    assert all(0 <= token < tokenizer.vocabulary for token in tokens)


@pytest.mark.parametrize("tokenizer", [WORLD, BYTES], ids=["world", "bytes"])
@given(text=texts | words)
def test_a_stream_says_the_same_and_never_splits_a_character(
    tokenizer: Tokenizer, text: str
) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + stream.finish() == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


def test_a_stream_that_ends_inside_a_character_says_so() -> None:
    stream = TextStream(BYTES)
    assert stream.push(0xE4) == ""
    assert stream.finish() == "\ufffd"


@given(text=texts | words)
def test_world_is_the_published_tokenizer(published: Published, text: str) -> None:
    assert WORLD.encode(text) == published.encode(text)


def test_every_world_id_decodes_to_its_bytes(published: Published) -> None:
    for token, expected in published.idx2token.items():
        assert WORLD.decode_bytes([token]) == expected


def test_ids_without_text_decode_too() -> None:
    assert WORLD.end_token == 0
    assert WORLD.decode([0]) == ""
    assert WorldTokenizer(65536).decode([65535]) == "\ufffd"
    assert ByteTokenizer(300).decode([299]) == "\ufffd"
    assert BYTES.decode([0xFF]) == "\ufffd"


@pytest.mark.parametrize(("tokens", "place"), [([1, 65530], "token 1 is 65530"), ([-1], "token 0")])
def test_an_id_outside_the_vocabulary_is_named(tokens: list[int], place: str) -> None:
    with pytest.raises(VocabularyError, match=place):
        WORLD.decode(tokens)


@pytest.mark.parametrize("tokenizer", [WORLD, BYTES], ids=["world", "bytes"])
def test_half_a_surrogate_pair_is_refused_with_its_place(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="character 2"):
        tokenizer.encode("ab\ud800")


@pytest.mark.parametrize(
    ("vocabulary", "name"),
    [
        (256, "bytes"),
        (65529, "world"),
        (65530, "world"),
        (65536, "world"),
        (50277, None),
        (1, None),
    ],
)
def test_the_vocabulary_chooses_the_tokenizer(vocabulary: int, name: str | None) -> None:
    tokenizer = tokenizer_for(vocabulary)
    assert (tokenizer.name if tokenizer else None) == name
    assert tokenizer is None or tokenizer.vocabulary == vocabulary


def test_an_option_overrules_the_vocabulary() -> None:
    chosen = tokenizer_for(1000, "bytes")
    assert chosen is not None
    assert chosen.name == "bytes"


@pytest.mark.parametrize(
    ("vocabulary", "name", "message"),
    [(256, "wörld", "there are: bytes, world"), (256, "world", "65529"), (100, "bytes", "256")],
)
def test_an_option_that_cannot_be_is_refused(vocabulary: int, name: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_for(vocabulary, name)


def test_no_tokenizer_is_an_error_only_where_text_is_wanted() -> None:
    assert require_tokenizer(BYTES, 256) is BYTES
    with pytest.raises(TokenizerError, match="pass token ids"):
        require_tokenizer(tokenizer_for(50277), 50277)
