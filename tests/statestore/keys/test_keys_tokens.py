"""Token ids become the same bytes whatever holds them, and nothing is guessed."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import TokenError
from statestore.keys import pack_tokens

INTEGERS = ("i1", "u1", "<i2", ">i2", "<u2", "<i4", ">u4", "<u4", "<i8", ">i8", "<u8", ">u8")
ids = st.integers(0, 2**32 - 1)


@given(st.lists(ids))
def test_a_list_is_its_ids_in_four_bytes_each(tokens: list[int]) -> None:
    assert pack_tokens(tokens) == struct.pack(f"<{len(tokens)}I", *tokens)


@given(st.lists(st.integers(0, 127)), st.sampled_from(INTEGERS))
def test_every_integer_type_gives_the_same_bytes(tokens: list[int], dtype: str) -> None:
    assert pack_tokens(np.array(tokens, dtype)) == pack_tokens(tokens)


@given(st.lists(ids))
def test_every_container_gives_the_same_bytes(tokens: list[int]) -> None:
    packed = pack_tokens(tokens)
    wide = array("Q", tokens)
    assert pack_tokens(tuple(tokens)) == packed
    assert pack_tokens(iter(tokens)) == packed
    assert pack_tokens(wide) == packed
    assert pack_tokens(memoryview(wide)) == packed
    assert pack_tokens(np.array(tokens, object)) == packed
    assert pack_tokens([np.int64(token) for token in tokens]) == packed
    assert pack_tokens(np.repeat(np.array(tokens, np.int64), 2)[::2]) == packed


class AsTensor:
    """Read through ``__array__`` alone, as a tensor is."""

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values)


class OnADevice(AsTensor):
    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        raise TypeError("can't convert a device tensor")


def test_a_tensor_is_read_through_the_array_protocol() -> None:
    assert pack_tokens(AsTensor([1, 2, 3])) == pack_tokens([1, 2, 3])


def test_a_range_of_zeros_and_ones_is_fine() -> None:
    assert pack_tokens([0, 1] * 500) == struct.pack("<1000I", *[0, 1] * 500)
    assert pack_tokens(range(3)) == struct.pack("<3I", 0, 1, 2)


@pytest.mark.parametrize(
    ("tokens", "index", "value"),
    [
        ([5, -1], 1, "-1"),
        ([5, 6, 2**32], 2, str(2**32)),
        ([2**70], 0, str(2**70)),
        ([0, 1.0], 1, "1.0"),
        ([7, "8"], 1, "'8'"),
        ([7, None], 1, "None"),
        ([0, 1, True], 2, "True"),
        ([False], 0, "False"),
        ([2, np.float32(3)], 1, "3.0"),
        ([2, np.bool_(True)], 1, "True"),
        ([[1, 2], [3]], 0, "[1, 2]"),
        (np.array([3, -4, -5]), 1, "-4"),
        (np.array([3, 2**32], np.uint64), 1, str(2**32)),
        (np.array([2**64 - 1], np.uint64), 0, str(2**64 - 1)),
        (np.array([1.5, 2.0]), 0, "1.5"),
        (np.array([True, False]), 0, "True"),
        (np.array(["a"]), 0, "'a'"),
        (np.array([3, True], object), 1, "True"),
        (array("d", [1.0]), 0, "1.0"),
        (array("q", [1, -1]), 1, "-1"),
    ],
)
def test_what_is_no_token_is_named(tokens: object, index: int, value: str) -> None:
    with pytest.raises(TokenError, match=rf"token {index} is ") as caught:
        pack_tokens(tokens)  # type: ignore[arg-type]
    assert value in str(caught.value)
    assert "0..4294967295" in str(caught.value)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ("hello", "tokenise"),
        (b"hello", "list"),
        (bytearray(b"hello"), "list"),
        ({1, 2}, "no order"),
        ({1: 2}, "no order"),
        (7, "not int"),
        (None, "not NoneType"),
        (np.zeros((2, 2), int), r"\(2, 2\)"),
        (np.array(3), r"shape \(\)"),
        (OnADevice([1]), "own memory"),
    ],
)
def test_what_is_no_run_of_ids_is_explained(tokens: object, says: str) -> None:
    with pytest.raises(TokenError, match=says):
        pack_tokens(tokens)  # type: ignore[arg-type]
