"""One piece of the image to one frame, and back.

    raw        the piece as it is
    planes4    32-bit words: low lanes, odd words, zstandard frame of the tops (see `planes`)
    planes2    16-bit words: the same

With n words and L lanes, q = n // L: the low lanes are q * (L - 1) words, the odd words n % L, and
the tops q words once decompressed. A piece that does not shrink is kept raw. The checksum is
xxh3_128 over the frame's bytes as they are stored, so damage is found ahead of decompression.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import zstandard
from numpy.typing import NDArray
from xxhash import xxh3_128

from statestore.codec import planes
from statestore.codec.layout import PIECE_BYTES
from statestore.errors import CorruptError, LayoutError

FrameCodec: TypeAlias = Literal["raw", "planes4", "planes2"]
Buffer: TypeAlias = bytes | bytearray | memoryview

FRAME_CODECS: tuple[FrameCodec, ...] = get_args(FrameCodec)
ITEM_SIZE: dict[FrameCodec, int] = {"planes4": 4, "planes2": 2}
CHECKSUM_BYTES = 16

_ENTROPY_ONLY = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=18,
    hash_log=6,  # a table this small finds next to no matches: they cost time and gain nothing
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
    write_content_size=True,
    write_checksum=False,
)


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame's bytes, in parts that follow one another."""

    codec: FrameCodec
    parts: tuple[Buffer, ...]
    length: int  # bytes
    raw_length: int  # bytes
    checksum: bytes


class FrameEncoder:
    """Encodes pieces, one after the other. Holds working memory: one per thread."""

    def __init__(self, *, compress: bool) -> None:
        self._zstd = zstandard.ZstdCompressor(compression_params=_ENTROPY_ONLY)
        self._compress = compress

    def encode(self, slices: Sequence[memoryview], itemsize: int) -> EncodedFrame:
        """The frame of the piece that the byte views `slices` make up."""
        raw_length = sum(len(part) for part in slices)
        codec: FrameCodec = "raw"
        parts: tuple[Buffer, ...] = tuple(slices)
        if self._compress:
            shrunk = self._planes(slices[0] if len(slices) == 1 else b"".join(slices), itemsize)
            if sum(len(part) for part in shrunk) < raw_length:
                codec, parts = "planes4" if itemsize == 4 else "planes2", shrunk
        checksum = _checksum(parts)
        return EncodedFrame(codec, parts, sum(len(p) for p in parts), raw_length, checksum)

    def _planes(self, piece: Buffer, itemsize: int) -> tuple[Buffer, ...]:
        words = np.frombuffer(piece, planes.WORD[itemsize])
        lanes = planes.LANES[itemsize]
        body = words[: words.size // lanes * lanes]
        low, top = planes.split32(body) if itemsize == 4 else planes.split16(body)
        odd = words[body.size :]
        return _bytes_of(low), _bytes_of(odd), self._zstd.compress(_bytes_of(top))


class FrameDecoder:
    """Decodes frames, one after the other. Holds working memory: one per thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=PIECE_BYTES)
        self._scratch = np.empty(0, np.uint8)

    def decode(
        self, name: str, codec: FrameCodec, data: memoryview, out: NDArray[np.uint8]
    ) -> None:
        """Frame `data` into the piece `out`, whose size is the frame's declared raw length.

        Raises `LayoutError` or `CorruptError`, naming the frame by `name`.
        """
        if codec == "raw":
            out[:] = np.frombuffer(data, np.uint8)
            return
        itemsize = ITEM_SIZE[codec]
        word = planes.WORD[itemsize]
        lanes = planes.LANES[itemsize]
        words = out.view(word)
        q, odd = divmod(words.size, lanes)
        low_words = q * (lanes - 1)
        kept = np.frombuffer(data, word, low_words + odd)
        top = self._tops(name, data[kept.nbytes :], q * itemsize).view(word)
        merge = planes.merge32 if itemsize == 4 else planes.merge16
        low = kept[:low_words].reshape(lanes - 1, q)
        merge(low, top, words[: q * lanes], self._scratch_of(q, word))
        words[q * lanes :] = kept[low_words:]

    def _tops(self, name: str, packed: memoryview, size: int) -> NDArray[np.uint8]:
        try:
            declared = zstandard.get_frame_parameters(packed).content_size
            if declared != size:
                raise LayoutError(f"{name} holds {declared} top bytes, its piece has {size}")
            tops = self._zstd.decompress(packed, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptError(f"{name} cannot be decompressed: {error}") from error
        if len(tops) != size:
            raise CorruptError(f"{name} gave {len(tops)} top bytes, its piece has {size}")
        return np.frombuffer(tops, np.uint8)

    def _scratch_of(self, words: int, word: np.dtype[Any]) -> NDArray[Any]:
        if self._scratch.size < words * word.itemsize:
            self._scratch = np.empty(words * word.itemsize, np.uint8)
        return self._scratch[: words * word.itemsize].view(word)


def shortest(codec: FrameCodec, raw_length: int) -> int:
    """The fewest bytes a frame of this codec can take for a piece of `raw_length` bytes."""
    if codec == "raw":
        return raw_length
    itemsize = ITEM_SIZE[codec]
    words, lanes = raw_length // itemsize, planes.LANES[itemsize]
    return (words // lanes * (lanes - 1) + words % lanes) * itemsize + 1


def check_sum(name: str, data: memoryview, expected: bytes) -> None:
    """Raises `CorruptError`, naming the frame, where `data` does not have this checksum."""
    if xxh3_128(data).digest() != expected:
        raise CorruptError(f"{name} is damaged: its checksum does not match")


def _checksum(parts: Sequence[Buffer]) -> bytes:
    running = xxh3_128()
    for part in parts:
        running.update(part)
    return running.digest()


def _bytes_of(words: NDArray[Any]) -> memoryview:
    return words.reshape(-1).view(np.uint8).data if words.size else memoryview(b"")
