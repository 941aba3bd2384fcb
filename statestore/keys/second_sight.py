"""Where prompts part, and when the state there is worth keeping. Pure.

A prompt that leaves those before it shares a prefix with one of them; the first to do so cannot
know it. The second can: its chunk ends were *sighted* up to there, and the state at the deepest of
them is a *fork*. Kept then, it serves the third. Two sights are asked for because most of what is
seen once is never seen again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Bytes of a mark: of its group, then of its own digest.
GROUP_BYTES: Final = 4
MARK_BYTES: Final = 12

_GROUP: Final = 16  # chunk ends


def marks(digests: Sequence[bytes], first: int = 0) -> list[bytes]:
    """What an index keeps of a prompt's chunk ends from the place `first` on: `MARK_BYTES` each.

    `digests` are the prefix digests of all its chunk ends, shallow first. Neighbours begin alike,
    so that an index in order of marks keeps them together and writes few pages for a prompt.
    """
    return [
        digests[place - place % _GROUP][:GROUP_BYTES] + digests[place][: MARK_BYTES - GROUP_BYTES]
        for place in range(first, len(digests))
    ]


def fork_place(sighted: int, found: int, end: int) -> int | None:
    """The place of the fork among a prompt's chunk ends, counted from 0, shallow first; ``None``:
    there is nothing to keep.

    Args:
        sighted: so many chunk ends, from the first on, were seen before.
        found: so many are behind what was found in the store.
        end: the place of the prompt's end, which is kept, or not, for its own sake.
    """
    place = sighted - 1
    return place if found <= place < end else None
