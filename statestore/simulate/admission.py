"""Which prefixes of a prompt to store: rules that a replay compares. Pure but for what was seen.

| name | stored |
| --- | --- |
| end | the prompt's last full block |
| end+fork | and where a prompt leaves those before it, the second time that prefix is seen |
| end+fork+sparse | and every 16th block, passing stops that go first |
| every | every block |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from statestore.backends.sightings import SIGHTINGS, LocalSightings
from statestore.errors import InputError
from statestore.keys import Role, StateKey, fork_place

STRIDE: Final = 16  # blocks

ADMISSIONS: Final = ("end+fork", "end", "end+fork+sparse", "every")


class Admission:
    """A rule, and the prefixes that it has seen."""

    def __init__(self, name: str, sightings: int = SIGHTINGS) -> None:
        self.name = name
        self._index = LocalSightings(sightings)

    def stored(self, keys: Sequence[StateKey], found: int) -> list[tuple[int, Role]]:
        """Places in `keys` (shallow first) to store, and why; the first `found` were read from
        the store. Ascending.
        """
        last = len(keys) - 1
        wanted: dict[int, Role] = {}
        if self.name == "every":
            wanted = dict.fromkeys(range(found, last), Role.SEGMENT)
        if "sparse" in self.name:
            wanted = dict.fromkeys(range(STRIDE - 1, last, STRIDE), Role.SPARSE)
        if "fork" in self.name and (fork := self._fork(keys, found)) is not None:
            wanted[fork] = Role.FORK
        wanted[last] = Role.PROMPT
        return sorted((place, role) for place, role in wanted.items() if place >= found)

    def _fork(self, keys: Sequence[StateKey], found: int) -> int | None:
        """The place of the fork; as the runtime does it, what was found asks and notes nothing."""
        digests = [key.digest for key in keys[found:]]
        seen = self._index.seen(digests)
        self._index.note(digests[seen:])
        return fork_place(found + seen, found, len(keys) - 1)


def make_admission(name: str = ADMISSIONS[0]) -> Admission:
    """A new rule. Raises `InputError` for a name that is none."""
    if name not in ADMISSIONS:
        raise InputError(f"admission {name!r} is not known; one of {', '.join(ADMISSIONS)}")
    return Admission(name)
