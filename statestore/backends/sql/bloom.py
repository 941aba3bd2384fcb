"""A Bloom filter over digests, in an array of 64-bit words: pure functions.

Digests are uniformly random, so two words of a digest are its hashes: the first names one word of
the array, the second `_BITS` bits in it. One word for each digest, so that a key costs one access
to memory, however large the array is. With two digests to a word, one foreign digest of 2,000
passes; with one, one of 10,000.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: The filter, [a power of two] words.
Words: TypeAlias = NDArray[np.uint64]
#: The hashes of digests, [n, 2 or more].
Hashes: TypeAlias = NDArray[np.uint64]

HASH_BYTES: Final = 16  # of a digest, its first

#: Digests that are faster looked at one by one than by a dozen calls into NumPy.
FEW: Final = 16

_DIGEST_WORDS: Final = 4
_BITS: Final = 5
_SHIFTS: Final = tuple(6 * nth for nth in range(_BITS))
_HASHES: Final = struct.Struct("<QQ")


def hashes(digests: Iterable[bytes]) -> Hashes:
    """Those of whole digests, 32 bytes each."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, _DIGEST_WORDS)


def hashes_of_hex(text: str) -> Hashes:
    """Those of digests whose first `HASH_BYTES` follow each other in hex."""
    return np.frombuffer(bytes.fromhex(text), "<u8").reshape(-1, HASH_BYTES // 8)


def passing(words: Words, wanted: Hashes) -> list[int]:
    """The places of those of `wanted` that were added, in order, and now and then of another."""
    found = words.take(_places(words, wanted))
    seconds = wanted[:, 1]
    first = np.flatnonzero((found >> (seconds & np.uint64(63))) & np.uint64(1))
    if not first.size:
        return []
    bits = _bits(seconds[first])
    passed: list[int] = first[(found[first] & bits) == bits].tolist()
    return passed


def passing_of_few(words: memoryview, digests: Iterable[bytes]) -> list[int]:
    """As `passing`, of whole digests: for up to `FEW`. `words` has the format of the array, "Q"."""
    last = len(words) - 1
    found = []
    for at, digest in enumerate(digests):
        first, drawn = _HASHES.unpack_from(digest)
        word: int = words[first & last]
        for shift in _SHIFTS:
            if not word >> (drawn >> shift & 63) & 1:
                break
        else:
            found.append(at)
    return found


def add(words: Words, added: Hashes) -> int:
    """Set the bits of `added`; for how many a bit was new. Nobody else writes meanwhile."""
    places, bits = _places(words, added), _bits(added[:, 1])
    new = np.count_nonzero((words.take(places) & bits) != bits)
    np.bitwise_or.at(words, places, bits)
    return int(new)


def _places(words: Words, drawn: Hashes) -> NDArray[np.intp]:
    return (drawn[:, 0] & np.uint64(len(words) - 1)).astype(np.intp)


def _bits(drawn: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = np.zeros_like(drawn)
    for nth in range(_BITS):
        bits |= np.uint64(1) << ((drawn >> np.uint64(6 * nth)) & np.uint64(63))
    return bits
