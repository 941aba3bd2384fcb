"""Token ids as bytes: unsigned 32-bit, little-endian, whatever the caller holds them in.

The same ids give the same bytes from a list, a NumPy array of any integer type, an `array.array` or
a tensor, on every platform. Nothing is rounded, wrapped or guessed: booleans, floats, text and ids
outside 0..2**32-1 are a `TokenError` that names the index and the value.

    >>> pack_tokens([1, 258]).hex()
    '0100000002010000'
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from statestore.errors import TokenError

TOKEN_BYTES = 4
TOKEN_LIMIT = 1 << 32

_U32 = next(code for code in "IL" if array(code).itemsize == TOKEN_BYTES)
_TEXT = (str, bytes, bytearray)
_UNORDERED = (AbstractSet, Mapping)


@runtime_checkable
class ArrayLike(Protocol):
    """What NumPy can read: its own arrays, and tensors in the machine's own memory."""

    def __array__(self) -> NDArray[Any]:
        """The elements as a NumPy array."""


Tokens: TypeAlias = Iterable[int] | ArrayLike


def pack_tokens(tokens: Tokens) -> bytes:
    """The ids as u32 little-endian, four bytes each.

    Raises `TokenError` for anything but a one-dimensional run of integers in 0..2**32-1.
    """
    if isinstance(
        tokens, list
    ):  # first: to ask for a protocol takes longer than a message's tokens
        return _pack_sequence(tokens)
    if isinstance(tokens, _TEXT):
        raise TokenError(
            f"tokens are a list of integers, not {type(tokens).__name__}: tokenise text first; "
            "for byte-level ids pass list(data)"
        )
    if isinstance(tokens, _UNORDERED):
        raise TokenError(f"a {type(tokens).__name__} has no order: pass a list of token ids")
    if isinstance(tokens, (ArrayLike, array, memoryview)):
        return _pack_array(_as_array(tokens))
    return _pack_sequence(tokens)


def count_tokens(packed: bytes) -> int:
    """How many ids `packed` holds."""
    return len(packed) // TOKEN_BYTES


def _as_array(tokens: ArrayLike | array[int] | memoryview) -> NDArray[Any]:
    try:
        return np.asarray(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TokenError(
            f"a {type(tokens).__name__} cannot be read as integers ({error}): pass a list, "
            "or an integer array in the machine's own memory"
        ) from error


def _pack_array(ids: NDArray[Any]) -> bytes:
    if ids.ndim != 1:
        raise TokenError(f"tokens are one run of ids, not an array of shape {ids.shape}")
    if ids.dtype.kind == "O":
        return _pack_sequence(ids.tolist())
    if ids.size == 0:
        return b""
    if ids.dtype.kind not in "iu":
        raise TokenError(_complaint(0, ids[0].item(), f"an array of {ids.dtype}"))
    if int(ids.min()) < 0 or int(ids.max()) >= TOKEN_LIMIT:
        outside = (ids < 0) | (ids.astype(np.uint64) >= TOKEN_LIMIT)
        first = int(np.flatnonzero(outside)[0])
        raise TokenError(_complaint(first, int(ids[first])))
    return ids.astype("<u4", copy=False).tobytes()


def _pack_sequence(tokens: Iterable[Any]) -> bytes:
    try:
        listed = tokens if isinstance(tokens, list) else list(tokens)
    except TypeError as error:
        raise TokenError(f"tokens are a list of integers, not {type(tokens).__name__}") from error
    try:
        ids = np.frombuffer(array(_U32, listed), dtype=np.dtype(f"u{TOKEN_BYTES}"))
    except (TypeError, OverflowError) as error:
        first = next((i for i, token in enumerate(listed) if not _is_token(token)), 0)
        shown = listed[first] if listed else None
        raise TokenError(_complaint(first, shown)) from error
    for i in np.flatnonzero(ids <= 1):  # where a boolean would hide
        if not _is_token(listed[i]):
            raise TokenError(_complaint(int(i), listed[i]))
    return ids.astype("<u4", copy=False).tobytes()


def _is_token(token: object) -> bool:
    if isinstance(token, bool) or "bool" in str(getattr(token, "dtype", "")):
        return False
    try:
        return 0 <= token.__index__() < TOKEN_LIMIT  # type: ignore[attr-defined, no-any-return]
    except (AttributeError, TypeError):
        return False


def _complaint(index: int, value: object, held_in: str = "") -> str:
    where = f" ({held_in})" if held_in else ""
    return f"token {index} is {value!r}{where}: ids are integers in 0..{TOKEN_LIMIT - 1}"
