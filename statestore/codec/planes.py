"""Splitting words into the byte that compresses and the bytes that do not, and merging them again.

A float's top byte (sign and exponent) has about 3 bits of entropy; the mantissa below is noise. A
run of words is taken as 4 (32-bit) or 2 (16-bit) lanes of equal length, w0 w1 ..; the *top* array
packs the lanes' top bytes into one lane, the *low* lanes keep the rest. The bytes of the last lane
fill the room that the top bytes left in the others. All steps are XORs and shifts of whole lanes,
so that they run at vector speed in NumPy; where that lets foreign bits into a byte, both directions
XOR the same ones.

    32 bits:  top = w0>>24 | w1>>24<<8 | w2>>24<<16 | w3>>24<<24
              w0 = p0&M ^ top<<24    w1 = p1&M ^ top<<16    w2 = p2&M ^ top<<8      M = 0x00ffffff
              w3 = top ^ p0>>24 ^ p1>>16 ^ p2>>8
    16 bits:  top = w0>>8 | w1>>8<<8      w0 = p&0xff ^ top<<8      w1 = top ^ p>>8
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

U32: TypeAlias = NDArray[np.uint32]
U16: TypeAlias = NDArray[np.uint16]

LANES = {4: 4, 2: 2}
"""Lanes by item size in bytes; words are a multiple of the lanes."""

WORD: dict[int, np.dtype[Any]] = {4: np.dtype("<u4"), 2: np.dtype("<u2")}

_M24 = 0x00FFFFFF
_TOP32 = 0xFF000000
_M8 = 0x00FF
_TOP16 = 0xFF00


def split32(words: U32, low: U32, top: U32, scratch: U32) -> None:
    """Words [4 * q] into low lanes [3, q] and tops [q]; `scratch` [2, q] is overwritten."""
    w0, w1, w2, w3 = words.reshape(4, -1)
    x, rest = scratch
    np.bitwise_and(w3, _TOP32, out=top)
    for w, bits in ((w2, 16), (w1, 8), (w0, 0)):
        np.right_shift(w, 24, out=x)
        np.left_shift(x, bits, out=x)
        np.bitwise_or(top, x, out=top)
    np.bitwise_and(w0, _M24, out=low[0])
    for p, w, bits in ((low[1], w1, 16), (low[2], w2, 8)):
        np.left_shift(top, bits, out=x)
        np.bitwise_xor(x, w, out=x)
        np.bitwise_and(x, _M24, out=p)
    np.bitwise_xor(w3, top, out=rest)
    for p, bits in ((low[2], 16), (low[1], 8), (low[0], 0)):
        np.right_shift(rest, bits, out=x)
        np.left_shift(x, 24, out=x)
        np.bitwise_or(p, x, out=p)
        np.right_shift(p, 24 - bits, out=x)
        np.bitwise_xor(rest, x, out=rest)


def merge32(low: U32, top: U32, out: U32, scratch: U32) -> None:
    """Low lanes [3, q] and tops [q] into words `out` [4 * q]; `scratch` [q] is overwritten."""
    w0, w1, w2, w3 = out.reshape(4, -1)
    for p, w, bits in ((low[0], w0, 24), (low[1], w1, 16), (low[2], w2, 8)):
        np.left_shift(top, bits, out=scratch)
        np.bitwise_and(p, _M24, out=w)
        np.bitwise_xor(w, scratch, out=w)
    np.right_shift(low[0], 24, out=w3)
    np.bitwise_xor(w3, top, out=w3)
    for p, bits in ((low[1], 16), (low[2], 8)):
        np.right_shift(p, bits, out=scratch)
        np.bitwise_xor(w3, scratch, out=w3)


def split16(words: U16, low: U16, top: U16, scratch: U16) -> None:
    """Words [2 * q] into low lanes [1, q] and tops [q]; `scratch` [2, q] is overwritten."""
    w0, w1 = words.reshape(2, -1)
    x = scratch[0]
    np.right_shift(w0, 8, out=x)
    np.bitwise_and(w1, _TOP16, out=top)
    np.bitwise_or(top, x, out=top)
    np.bitwise_xor(w1, top, out=x)
    np.left_shift(x, 8, out=x)
    np.bitwise_and(w0, _M8, out=low[0])
    np.bitwise_or(low[0], x, out=low[0])


def merge16(low: U16, top: U16, out: U16, scratch: U16) -> None:
    """Low lanes [1, q] and tops [q] into words `out` [2 * q]; `scratch` [q] is overwritten."""
    w0, w1 = out.reshape(2, -1)
    np.left_shift(top, 8, out=scratch)
    np.bitwise_and(low[0], _M8, out=w0)
    np.bitwise_xor(w0, scratch, out=w0)
    np.right_shift(low[0], 8, out=w1)
    np.bitwise_xor(w1, top, out=w1)
