"""Text as it comes: what a stop text or a split character holds back, and how it is let go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rwkv_runtime import Generated, Stop
from rwkv_runtime.engines import Engine
from rwkv_runtime.errors import NumericsError, TokenizerError
from rwkv_runtime.generation import Continuation, generate
from rwkv_runtime.sampling import GREEDY, Sampling
from rwkv_runtime.tokenizer import ByteTokenizer, Tokenizer, WorldTokenizer

END = 3


class EndingBytes(ByteTokenizer):
    """Bytes, and an id that ends a text."""

    end_token: int | None = END


class Script:
    """An engine that writes the same tokens whatever it reads; its state is the place in them."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens

    def at(self, place: int) -> torch.Tensor:
        return torch.eye(256)[self._tokens[place]]

    def decode(self, token: int, state: int) -> tuple[torch.Tensor, int]:
        return self.at(state + 1), state + 1

    def logits(self, output: torch.Tensor) -> torch.Tensor:
        return output


def written(
    tokens: Sequence[int],
    stop: str | tuple[str, ...] = "",
    tokenizer: Tokenizer | None = None,
    max_tokens: int | None = None,
) -> list[Generated]:
    script = Script(tokens)
    return list(
        generate(
            cast("Engine", script),
            0,
            script.at(0),
            tokenizer=tokenizer or EndingBytes(),
            max_tokens=max_tokens or len(tokens),
            sampling=GREEDY,
            stop=Stop.at(*([stop] if isinstance(stop, str) else stop)),
        )
    )


def text(new: list[Generated]) -> str:
    return "".join(one.text for one in new)


def test_an_end_token_is_not_yielded() -> None:
    assert [one.token for one in written([*b"ab", END, *b"cd"])] == [*b"ab"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([*b"ab\n", END], "ab\n"),  # half of the stop text, and then no more
        ([*"aé".encode()[:2], END], "a\ufffd"),  # half a character
        ([*b"ab", END], "ab"),
    ],
)
def test_what_was_held_back_is_not_lost_at_the_end_token(tokens: list[int], expected: str) -> None:
    assert text(written(tokens, stop="\n\n")) == expected


def test_what_was_held_back_is_not_lost_at_the_last_token() -> None:
    assert text(written(b"ab\n", stop="\n\n")) == "ab\n"
    assert text(written("aé".encode(), max_tokens=2)) == "a\ufffd"


def test_a_stop_text_is_found_across_tokens() -> None:
    assert text(written(b"a\nb\n\nc", stop="\n\n")) == "a\nb"
    assert text(written(b"aaab", stop="aab")) == "a"


def test_characters_are_never_split() -> None:
    pieces = [one.text for one in written("aé€".encode())]
    assert pieces == ["a", "", "é", "", "", "€"]


class Pieces(ByteTokenizer):
    """Any bytes as tokens: half characters, several of them, parts of a stop text."""

    def __init__(self, data: bytes, cuts: Iterable[int]) -> None:
        edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(data)}), len(data)]
        self.pieces = [data[a:b] for a, b in pairwise(edges)]
        super().__init__(len(self.pieces))

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        return b"".join(self.pieces[token] for token in tokens)


words = st.text(alphabet="aé€😀\n:U", max_size=12)
world = WorldTokenizer()


@given(
    text=st.one_of(words, st.text()).filter(bool),
    stops=st.lists(words.filter(bool), max_size=3),
    cuts=st.sets(st.integers(0, 60)),
)
def test_text_comes_in_whole_characters_up_to_a_stop(
    text: str, stops: list[str], cuts: set[int]
) -> None:
    pieces = Pieces(text.encode(), cuts)
    for tokenizer, tokens in (
        (ByteTokenizer(), list(text.encode())),
        (world, world.encode(text)),
        (pieces, range(len(pieces.pieces))),
    ):
        going_on = Continuation(tokenizer, len(tokens), GREEDY, Stop.at(*stops))
        new = []
        for token in tokens:
            new += [going_on.take(token)]
            if going_on.ended is not None:
                break
        said = "".join(one.text for one in new if one is not None)
        stopped = going_on.ended == "stop"
        assert text.startswith(said)
        assert not any(stop in said for stop in stops)
        assert text[len(said) :].startswith(tuple(stops)) if stopped else said == text


def test_long_stop_texts_that_are_nearly_there_hold_nobody_up() -> None:
    """A token costs what it is long, however much is held back: it used to take 15 ms at the end
    of this, in the thread that all streams share.
    """
    almost = ("a" * 100_000 + "b", *(f"{number}" + "c" * 100_000 for number in range(15)))
    text = Continuation(ByteTokenizer(), 10_000, GREEDY, Stop(almost))
    began = time.thread_time()
    told = [text.take(ord("a")) for _ in range(6000)]
    assert not any(one.text for one in told if one is not None)
    assert time.thread_time() - began < 20


@given(
    text=st.text("ab", min_size=1, max_size=40),
    stops=st.lists(st.text("ab", max_size=9), max_size=3),
)
def test_what_is_held_back_is_what_may_become_a_stop_text(text: str, stops: list[str]) -> None:
    going_on = Continuation(ByteTokenizer(), 100, GREEDY, Stop(tuple(stops)))
    said = ""
    for place, byte in enumerate(text.encode(), 1):
        new = going_on.take(byte)
        assert new is not None
        said += new.text
        so_far = text[:place]
        whole = [so_far.find(stop) for stop in stops if stop and stop in so_far]
        if whole:
            assert (going_on.ended, said) == ("stop", so_far[: min(whole)])
            return
        begun = [n for stop in stops for n in range(len(stop)) if so_far.endswith(stop[:n])]
        assert said == so_far[: len(so_far) - max(begun, default=0)]


def test_a_stop_text_needs_a_tokenizer() -> None:
    script = Script(b"ab")
    new = generate(
        cast("Engine", script),
        0,
        script.at(0),
        tokenizer=None,
        max_tokens=2,
        sampling=GREEDY,
        stop=Stop.at("b"),
    )
    with pytest.raises(TokenizerError, match="256"):
        next(new)


def test_logits_that_are_no_numbers_end_with_an_error() -> None:
    class Broken(Script):
        def at(self, place: int) -> torch.Tensor:
            return super().at(place) * float("nan" if place else 1)

    script = Broken(b"ab")
    new = generate(
        cast("Engine", script),
        0,
        script.at(0),
        tokenizer=ByteTokenizer(),
        max_tokens=2,
        sampling=GREEDY,
        stop=Stop(),
    )
    assert next(new).text == "a"
    with pytest.raises(NumericsError):
        next(new)


@pytest.mark.parametrize(
    ("tokens", "stops", "expected"),
    [
        (b"ab\n\nc", ("\n\n", "b"), "a"),  # the one that comes first, not the one named first
        (b"ab\n\nc", ("zz", "\n\n"), "ab"),
        (b"ab\ndx", ("b\nc", "b\nd"), "a"),
        (b"ab\nex", ("b\nc", "b\nd"), "ab\nex"),  # held back, and given when it stops nothing
        (b"abc", ("",), "abc"),
    ],
)
def test_the_first_of_several_stop_texts_ends_the_text(
    tokens: bytes, stops: tuple[str, ...], expected: str
) -> None:
    assert text(written(tokens, stop=stops)) == expected


def test_penalties_keep_a_text_from_repeating_itself() -> None:
    flat = torch.zeros(256)
    flat[[97, 98, 99]] = torch.tensor([1.0, 0.9, 0.8])

    class Flat(Script):
        def at(self, place: int) -> torch.Tensor:
            return flat

    script = Flat(b"abc")
    new = generate(
        cast("Engine", script),
        0,
        flat,
        tokenizer=ByteTokenizer(),
        max_tokens=3,
        sampling=Sampling(presence_penalty=0.5),
        stop=Stop(),
    )
    assert text(list(new)) == "abc"
