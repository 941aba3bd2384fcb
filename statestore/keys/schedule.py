"""Which chunks a prompt is computed in, and where along it a state may be saved.

Chunks of `ChunkRule.chunk` tokens are counted from where the last one closed. A segment's end
closes a chunk that holds at least `min_chunk` tokens; a shorter rest flows on into the next
segment; the prompt's end always closes. With chunk 256, min_chunk 32:

    segments  600 | 10 | 300          the 10 tokens are not worth a chunk: they flow on
    ends      256 512 600 | - | 856 910

Everything is a pure function of the segment lengths and forward-only: what follows never moves an
end, except that of the chunk still open at the prompt's end. An end that stays whatever follows is
*stable*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from statestore.errors import InputError, PromptError


class Role(StrEnum):
    """Why a state was saved."""

    SEGMENT = "segment"  # the last chunk end inside a declared segment
    PROMPT = "prompt"  # the end of a whole prompt; keeps what the first new token needs
    FORK = "fork"  # where prompts part, inside a segment; kept the second time it is seen
    SPARSE = "sparse"  # a stop along a long segment, so that another worker can take over
    NAMED = "named"  # found by name only


@dataclass(frozen=True, slots=True)
class ChunkRule:
    """How a prompt is cut. Raises `InputError` unless 1 <= min_chunk <= chunk and stride >= 1."""

    chunk: int = 256  # tokens
    min_chunk: int = 32  # tokens
    stride: int = 10  # every so many chunks inside a segment, a sparse boundary

    def __post_init__(self) -> None:
        for name in ("chunk", "min_chunk", "stride"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(f"chunk rule: {name} is a count of 1 or more, not {value!r}")
        if self.min_chunk > self.chunk:
            raise InputError(
                f"chunk rule: min_chunk {self.min_chunk} is larger than chunk {self.chunk}"
            )


@dataclass(frozen=True, slots=True)
class Boundary:
    """A chunk end where a state may be saved."""

    position: int  # tokens read
    role: Role
    stable: bool  # stays where it is whatever follows
    segment: int  # the segment it lies in, counted from 0, empty ones included


@dataclass(frozen=True, slots=True)
class Schedule:
    """Chunk ends and boundaries, both in tokens from the prompt's start, ascending."""

    ends: tuple[int, ...]
    boundaries: tuple[Boundary, ...]


def schedule(segment_lengths: Sequence[int], rule: ChunkRule) -> Schedule:
    """Cut a prompt whose segments have these lengths (tokens). Empty segments add nothing.

    Raises `PromptError` where no token is left, `InputError` for a negative length.
    """
    if any(length < 0 for length in segment_lengths):
        raise InputError(f"segment lengths are 0 or more, not {list(segment_lengths)}")
    total = sum(segment_lengths)
    if total == 0:
        raise PromptError("the prompt is empty: give at least one token in one segment")
    ends: list[int] = []
    boundaries: list[Boundary] = []
    reached = 0
    for segment, length in enumerate(segment_lengths):
        reached += length
        closed = _stable_ends(ends[-1] if ends else 0, reached, rule) if length else []
        boundaries += _boundaries(closed, segment, rule.stride)
        ends += closed
    stable = bool(ends) and ends[-1] == total
    if stable:
        boundaries.pop()
    else:
        ends.append(total)
    last = max(i for i, length in enumerate(segment_lengths) if length)
    boundaries.append(Boundary(total, Role.PROMPT, stable, last))
    return Schedule(tuple(ends), tuple(boundaries))


def _stable_ends(opened: int, segment_end: int, rule: ChunkRule) -> list[int]:
    """Ends up to `segment_end` of the chunk open since `opened` and those behind it."""
    closed = list(range(opened + rule.chunk, segment_end + 1, rule.chunk))
    if segment_end - (closed[-1] if closed else opened) >= rule.min_chunk:
        closed.append(segment_end)
    return closed


def _boundaries(closed: Sequence[int], segment: int, stride: int) -> Iterator[Boundary]:
    for position in closed[stride - 1 : -1 : stride]:
        yield Boundary(position, Role.SPARSE, True, segment)
    if closed:
        yield Boundary(closed[-1], Role.SEGMENT, True, segment)
