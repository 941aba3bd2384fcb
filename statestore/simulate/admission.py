"""Which prefixes of a prompt to store: rules that a replay compares. Pure but for what was seen.

| name | stored |
| --- | --- |
| end | ends of declared segments, and the prompt's last full block |
| end+fork | and where a prompt leaves those before it, the second time that prefix is seen |
| end+fork+sparse | and stops along what was computed, passing ones: see `stops` |
| every | every block |

Ends that spare too few tokens, against what lies below them, are not worth a state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from statestore.backends.sightings import SIGHTINGS, LocalSightings
from statestore.errors import InputError
from statestore.keys import Role, StateKey, fork_place, marks

#: Tokens between two stops, counted from where the prompt's last segment begins: what the
#: runtime's default chunk rule makes of it.
STOP_TOKENS: Final = 2560
#: Tokens that an end must spare, as in the runtime.
GAIN_TOKENS: Final = 64

ADMISSIONS: Final = ("end+fork", "end", "end+fork+sparse", "every")
#: What production does.
PRODUCTION: Final = "end+fork+sparse"


class Admission:
    """A rule, and the prefixes that it has seen.

    Args:
        name: one of `ADMISSIONS`.
        sightings: prefixes that it remembers, about.
        gain_tokens: tokens that an end must spare, beyond the state below it.
    """

    def __init__(
        self, name: str, sightings: int = SIGHTINGS, gain_tokens: float = GAIN_TOKENS
    ) -> None:
        self.name = name
        self._gain_tokens = gain_tokens
        self._index = LocalSightings(sightings)

    def stored(
        self, keys: Sequence[StateKey], found: int, segments: Collection[int] = ()
    ) -> list[tuple[int, Role]]:
        """Places in `keys` (shallow first) to store, and why; the first `found` were read from
        the store. Ascending. Declared segments end at `segments`.
        """
        last = len(keys) - 1
        wanted: dict[int, Role] = {}
        if self.name == "every":
            wanted = dict.fromkeys(range(found, last), Role.SEGMENT)
        if "sparse" in self.name:
            wanted = dict.fromkeys(stops(keys, found, segments), Role.SPARSE)
        if "fork" in self.name and (fork := self._fork(keys, found)) is not None:
            wanted[fork] = Role.FORK
        wanted |= dict.fromkeys(segments, Role.SEGMENT)
        wanted[last] = Role.PROMPT
        return self._worth_it(keys, found, wanted)

    def _worth_it(
        self, keys: Sequence[StateKey], found: int, wanted: Mapping[int, Role]
    ) -> list[tuple[int, Role]]:
        reached = keys[found - 1].n_tokens if found else 0
        chosen: list[tuple[int, Role]] = []
        for place, role in sorted(wanted.items()):
            if place < found:
                continue
            if role is Role.SPARSE:
                chosen.append((place, role))
            elif keys[place].n_tokens - reached >= self._gain_tokens:
                chosen.append((place, role))
                reached = keys[place].n_tokens
        return chosen

    def _fork(self, keys: Sequence[StateKey], found: int) -> int | None:
        """The place of the fork; as the runtime does it, what was found asks and notes nothing."""
        unknown = marks([key.digest for key in keys], found)
        seen = self._index.seen(unknown)
        self._index.note(unknown[seen:])
        return fork_place(found + seen, found, len(keys) - 1)


def stops(keys: Sequence[StateKey], found: int, segments: Collection[int] = ()) -> list[int]:
    """Places of the stops that a prompt leaves of which `found` keys were found: those along its
    last segment. What lies along declared segments goes when their ends are stored.
    """
    last = len(keys) - 1
    ended = max((place for place in segments if place < last), default=-1)
    begin = keys[ended].n_tokens if ended >= 0 else 0
    chosen: list[int] = []
    passed = 0
    for place in range(ended + 1, last):
        reached = (keys[place].n_tokens - begin) // STOP_TOKENS
        if reached > passed and place >= found:
            chosen.append(place)
        passed = reached
    return chosen


def make_admission(name: str = ADMISSIONS[0], gain_tokens: float = GAIN_TOKENS) -> Admission:
    """A new rule. Raises `InputError` for a name that is none."""
    if name not in ADMISSIONS:
        raise InputError(f"admission {name!r} is not known; one of {', '.join(ADMISSIONS)}")
    return Admission(name, gain_tokens=gain_tokens)
