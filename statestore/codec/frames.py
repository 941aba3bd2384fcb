"""One piece of the image to one frame, and back.

    raw        the piece as it is
    planes4    32-bit words: low lanes, odd words, zstandard frame of the tops (see `planes`)
    planes2    16-bit words: the same; bytes are always kept raw

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

from statestore.codec import kernel, planes
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
    parts: tuple[memoryview, ...]
    length: int  # bytes
    raw_length: int  # bytes
    checksum: bytes


def encode_raw(slices: Sequence[memoryview]) -> EncodedFrame:
    """The frame of the piece that the byte views `slices` make up, as views of the same memory."""
    running = xxh3_128()
    for part in slices:
        running.update(part)
    length = sum(len(part) for part in slices)
    return EncodedFrame("raw", tuple(slices), length, length, running.digest())


class PlanesEncoder:
    """Encodes pieces, one after the other. Holds working memory: one per thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdCompressor(compression_params=_ENTROPY_ONLY)
        self._scratch = _Scratch()

    def encode(
        self, slices: Sequence[memoryview], itemsize: int, room: NDArray[np.uint8]
    ) -> EncodedFrame:
        """The frame of the piece that `slices` make up; if it shrinks, in `room` [its bytes]."""
        if itemsize not in planes.WORD:
            return encode_raw(slices)
        piece = slices[0] if len(slices) == 1 else b"".join(slices)
        word, lanes = planes.WORD[itemsize], planes.LANES[itemsize]
        words = np.frombuffer(piece, word)
        q, odd = divmod(words.size, lanes)
        body = q * lanes
        low_words = q * (lanes - 1)
        kept = room.view(word)[: low_words + odd]
        top, *_ = lane = self._scratch.words(3 * q, word).reshape(3, q)
        split = kernel.current().split[itemsize]
        split(words[:body], kept[:low_words].reshape(lanes - 1, q), top, lane[1:])
        packed = self._zstd.compress(top.view(np.uint8).data) if q else b""
        length = kept.nbytes + len(packed)
        if not q or length >= len(piece):
            return encode_raw(slices)
        kept[low_words:] = words[body:]
        room[kept.nbytes : length] = np.frombuffer(packed, np.uint8)
        stored = room[:length].data
        codec: FrameCodec = "planes4" if itemsize == 4 else "planes2"
        return EncodedFrame(codec, (stored,), length, len(piece), xxh3_128(stored).digest())


class FrameDecoder:
    """Decodes frames, one after the other. Holds working memory: one per thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=PIECE_BYTES)
        self._scratch = _Scratch()

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
        merge = kernel.current().merge[itemsize]
        low = kept[:low_words].reshape(lanes - 1, q)
        merge(low, top, words[: q * lanes], self._scratch.words(q, word))
        words[q * lanes :] = kept[low_words:]

    def _tops(self, name: str, packed: memoryview, size: int) -> NDArray[np.uint8]:
        try:
            declared = zstandard.get_frame_parameters(packed)
            if declared.content_size != size or declared.window_size > PIECE_BYTES:
                raise LayoutError(
                    f"{name} holds {declared.content_size} top bytes, its piece has {size}; "
                    f"its window is {declared.window_size} bytes, at most {PIECE_BYTES}"
                )
            tops = self._zstd.decompress(packed, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptError(f"{name} cannot be decompressed: {error}") from error
        if len(tops) != size:
            raise CorruptError(f"{name} gave {len(tops)} top bytes, its piece has {size}")
        return np.frombuffer(tops, np.uint8)


class _Scratch:
    """Working memory that is kept from piece to piece."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def words(self, count: int, word: np.dtype[Any]) -> NDArray[Any]:
        """`count` words of undefined content."""
        size = count * word.itemsize
        if self._bytes.size < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(word)


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
