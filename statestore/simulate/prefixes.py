"""The keys along a prompt, packed: a trace of a million requests has some twenty million of them,
and a `StateKey` each would take gigabytes. They are made when somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, overload

from statestore.keys import StateKey

#: Of a digest, what is kept; it stands for both halves.
KEPT_BYTES: Final = 16


class Prefixes(Sequence[StateKey]):
    """Immutable, shallow first. Slices are tuples.

    Args:
        digests: `KEPT_BYTES` for each key, one behind the other.
        positions: tokens, as many as there are keys.
    """

    __slots__ = ("_digests", "_positions")

    def __init__(self, digests: bytes, positions: Sequence[int]) -> None:
        self._digests = digests
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, place: int) -> StateKey: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[StateKey, ...]: ...
    def __getitem__(self, place: int | slice) -> StateKey | tuple[StateKey, ...]:
        if isinstance(place, slice):
            return tuple(map(self._key, range(len(self))[place]))
        return self._key(range(len(self))[place])

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, Sequence) else NotImplemented

    def __hash__(self) -> int:
        return hash(self[:])

    def __repr__(self) -> str:
        return f"Prefixes({self[:]})"

    def _key(self, place: int) -> StateKey:
        kept = self._digests[KEPT_BYTES * place : KEPT_BYTES * (place + 1)]
        return StateKey(kept + kept, self._positions[place])
