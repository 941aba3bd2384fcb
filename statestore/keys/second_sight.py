"""Where prompts part, and when the state there is worth keeping. Pure.

A prompt that parts from earlier ones shares a prefix with one of them, and the first prompt to do
so cannot be recognised. The second can: its chunk ends were *sighted* up to there, and the state at
the deepest of them is a *fork*. Kept then, it serves the third. Two sightings are required because
most prefixes that are seen once are never seen again.
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
        sighted: how many chunk ends, from the first on, were seen before.
        found: how many of them are covered by what was found in the store.
        end: the place of the prompt's end, which is kept, or not, on its own merits.
    """
    place = sighted - 1
    return place if found <= place < end else None
