"""What splits and merges planes: compiled C where it is to be had, NumPy else and until then. The
bytes are the same.

`KERNEL_VARIABLE` says "native", the default, or "numpy". The library is loaded at first use, if it
is in the user's cache; if not, it is compiled in a thread beside the program. It is believed after
it gave NumPy's bytes for words of many lengths. C is given no size that does not come from arrays
that are held here.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from statestore.codec import planes
from statestore.config import KERNEL_VARIABLE
from statestore.errors import SettingsError
from statestore.native import Sources, load, load_compiled
from statestore.native.behind import Behind

Array: TypeAlias = NDArray[Any]
#: `planes.split32` and its like: (words, low, top, scratch); or (low, top, words, scratch).
Step: TypeAlias = Callable[[Array, Array, Array, Array], None]
Kernel: TypeAlias = Literal["native", "numpy"]

SOURCES: Final = Sources(
    Path(__file__).with_name("planes.c"), (), title="the codec's kernel", otherwise="go on in NumPy"
)
TRIED_WORDS = (0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 1021)  # in each lane
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Planes:
    """Split and merge, by the item size of words in bytes."""

    name: Kernel
    split: Mapping[int, Step]
    merge: Mapping[int, Step]


NUMPY: Final = Planes(
    "numpy",
    {4: planes.split32, 2: planes.split16},
    {4: planes.merge32, 2: planes.merge16},
)


def current() -> Planes:
    """What there is by now."""
    return _NATIVE.get() or NUMPY


def settled(seconds: float) -> Planes:
    """The same, once it is known whether there will be another, or the time is over."""
    return _NATIVE.wait(seconds) or NUMPY


def native(library: ctypes.CDLL) -> Planes | None:
    """The library's functions, if they do what NumPy does."""
    made = Planes(
        "native",
        {size: _split(getattr(library, f"split{8 * size}"), size) for size in NUMPY.split},
        {size: _merge(getattr(library, f"merge{8 * size}"), size) for size in NUMPY.merge},
    )
    tried = ((size, q) for size in NUMPY.split for q in TRIED_WORDS)
    return made if all(_agrees(made, size, q) for size, q in tried) else None


def _find() -> Planes | None:
    name = os.environ.get(KERNEL_VARIABLE) or "native"
    if name == "native":
        with suppress(Exception):  # `_make` meets it again, and says so
            found = load_compiled(SOURCES)
            return None if found is None else native(found)
        return None
    if name != "numpy":
        _LOG.warning(
            "%s=%s is not known: native or numpy; going on in NumPy", KERNEL_VARIABLE, name
        )
    return NUMPY


def _make(stop: threading.Event) -> Planes | None:
    try:
        made = native(load(SOURCES, stop=stop))
    except SettingsError as error:  # no compiler, most often: there is nothing to be done
        _LOG.info("%s", error)
        return None
    except Exception:  # noqa: BLE001 - whatever it is, NumPy does the same
        _LOG.warning("%s cannot be used; going on in NumPy", SOURCES.title, exc_info=True)
        return None
    if made is None:
        _LOG.warning(
            "%s does not give NumPy's bytes and is not used: please report it, with the name and "
            "version of the compiler",
            SOURCES.title,
        )
    return made


def _split(function: ctypes._NamedFuncPointer, size: int) -> Step:
    call = _typed(function)

    def split(words: Array, low: Array, top: Array, scratch: Array) -> None:  # noqa: ARG001
        _check(size, words, low, top, written=(low, top))
        call(words.ctypes.data, low.ctypes.data, top.ctypes.data, top.size)

    return split


def _merge(function: ctypes._NamedFuncPointer, size: int) -> Step:
    call = _typed(function)

    def merge(low: Array, top: Array, out: Array, scratch: Array) -> None:  # noqa: ARG001
        _check(size, out, low, top, written=(out,))
        call(low.ctypes.data, top.ctypes.data, out.ctypes.data, top.size)

    return merge


def _typed(function: ctypes._NamedFuncPointer) -> ctypes._NamedFuncPointer:
    pointer = ctypes.c_void_p
    function.argtypes = (pointer, pointer, pointer, ctypes.c_int64)
    function.restype = None
    return function


def _check(size: int, words: Array, low: Array, top: Array, *, written: tuple[Array, ...]) -> None:
    """All that C relies on. Raises `ValueError`: where this fails, the caller is wrong."""
    lanes, q = planes.LANES[size], top.size
    arrays = (words, low, top)
    if (
        [array.size for array in arrays] != [lanes * q, (lanes - 1) * q, q]
        or any(array.itemsize != size or not array.flags.c_contiguous for array in arrays)
        or not all(array.flags.writeable for array in written)
    ):
        raise ValueError(f"planes of {size}-byte words do not fit: {[a.shape for a in arrays]}")


def _agrees(made: Planes, size: int, q: int) -> bool:
    """On words that begin anywhere; what lies around the results is left alone."""
    lanes, word, start = planes.LANES[size], planes.WORD[size], q % size
    bits = np.arange(1, lanes * q + 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = np.frombuffer((bits >> np.uint64(32)).astype("<u4").tobytes(), word, lanes * q, start)
    scratch = np.empty((2, q), word)
    rooms = []
    for which in (NUMPY, made):
        room = np.full(start + (2 * lanes * q + 1) * size, 0x5A, np.uint8)
        fields = room[start:-size].view(word)
        low, top, out = np.split(fields, [(lanes - 1) * q, lanes * q])
        which.split[size](words, low.reshape(lanes - 1, q), top, scratch)
        which.merge[size](low.reshape(lanes - 1, q), top, out, scratch[0])
        rooms.append(room.tobytes())
    return rooms[0] == rooms[1]


_NATIVE: Final = Behind(_find, _make)
