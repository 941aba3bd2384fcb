"""Which prefixes of a prompt to store: rules that a replay compares. Pure but for what was seen.

| name | stored |
| --- | --- |
| end | the prompt's last full block |
| end+fork | and where a prompt leaves those before it, the second time that prefix is seen |
| end+fork+sparse | and every 16th block, passing stops that go first |
| every | every block |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from statestore.errors import InputError
from statestore.keys import Role, StateKey

#: Prefixes that are remembered as seen; about 150 MB where all are.
SEEN: Final = 1 << 20
STRIDE: Final = 16  # blocks

ADMISSIONS: Final = ("end+fork", "end", "end+fork+sparse", "every")


class Admission:
    """A rule, and the prefixes that it has seen."""

    def __init__(self, name: str, seen: int = SEEN) -> None:
        self.name = name
        self._limit = seen
        self._seen: OrderedDict[bytes, None] = OrderedDict()

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
        if "fork" in self.name:
            wanted[self._second_sight(keys) - 1] = Role.SEGMENT
        wanted[last] = Role.PROMPT
        return sorted((place, role) for place, role in wanted.items() if place >= found)

    def _second_sight(self, keys: Sequence[StateKey]) -> int:
        """How many of `keys` were seen before; all of them are now."""
        depth = len(keys)
        while depth and keys[depth - 1].digest not in self._seen:
            depth -= 1
        for key in keys:
            self._seen[key.digest] = None
            self._seen.move_to_end(key.digest)
        while len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        return depth


def make_admission(name: str = ADMISSIONS[0]) -> Admission:
    """A new rule. Raises `InputError` for a name that is none."""
    if name not in ADMISSIONS:
        raise InputError(f"admission {name!r} is not known; one of {', '.join(ADMISSIONS)}")
    return Admission(name)
