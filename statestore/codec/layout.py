"""Where every byte of a state goes: a pure function of its tensors' specs.

The *image* of a state is its tensors without gaps: those of 4-byte elements first, then those of
2-byte ones and of bytes, each in order, the output last among its like. The image is cut into
*pieces* of `PIECE_BYTES`, anew where the item size changes; each piece becomes one frame. A frame
starts at a multiple of `ALIGNMENT` in the container, so uncompressed frames of one item size are
one run of memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from statestore.schema import TensorSpec

ALIGNMENT = 64
PIECE_BYTES = 1 << 20  # 1 MiB
ITEM_SIZES = (4, 2, 1)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of the image that becomes one frame."""

    begin: int  # bytes from the image's start
    end: int
    itemsize: int  # bytes per element


@dataclass(frozen=True, slots=True)
class Image:
    """Order, offsets and pieces of the tensors of one state."""

    order: tuple[int, ...]  # indices of the specs in the image's order
    offsets: tuple[int, ...]  # by index of the spec: bytes from the image's start
    kept_at: tuple[int, ...]  # the same, of uncompressed frames from the first one's start on
    runs: tuple[slice, ...]  # what tensors take from `offsets` on
    kept_runs: tuple[slice, ...]  # and from `kept_at` on
    pieces: tuple[Piece, ...]
    nbytes: int


def aligned(offset: int) -> int:
    """The first multiple of `ALIGNMENT` from `offset` on."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


@lru_cache(maxsize=16)
def image_of(specs: tuple[TensorSpec, ...]) -> Image:
    """The image of tensors with these specs, the output last."""
    order: list[int] = []
    offsets = [0] * len(specs)
    pieces: list[Piece] = []
    kept_at = [0] * len(specs)
    reached = gaps = 0
    for itemsize in ITEM_SIZES:
        begin = reached
        gaps = aligned(begin + gaps) - begin
        for i in [i for i, spec in enumerate(specs) if spec.dtype.itemsize == itemsize]:
            order.append(i)
            offsets[i] = reached
            kept_at[i] = reached + gaps
            reached += specs[i].nbytes
        pieces += (
            Piece(cut, min(cut + PIECE_BYTES, reached), itemsize)
            for cut in range(begin, reached, PIECE_BYTES)
        )
    runs, kept_runs = (
        tuple(slice(at, at + spec.nbytes) for spec, at in zip(specs, places, strict=True))
        for places in (offsets, kept_at)
    )
    return Image(
        tuple(order), tuple(offsets), tuple(kept_at), runs, kept_runs, tuple(pieces), reached
    )
