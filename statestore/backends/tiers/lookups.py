"""The tallies of tiers: each was asked as far as none nearer than it had the whole prompt.

A lookup counts as found in the tier whose state answered it. Those nearer were asked and had
nothing as deep; those further were asked for more, unless it was the whole prompt, and had no more.
A tier keeps its own; what a process's memory was asked, the home keeps under the tier's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from statestore.backends.base import Backend
from statestore.backends.lookups import LookupRows, Lookups, LookupSums, lookups_of
from statestore.errors import BackendError


class TieredLookups:
    """As the port says, over tiers by name, nearest first."""

    lasting: Final = True

    def __init__(self, tiers: Sequence[tuple[str, Backend]]) -> None:
        self._tiers = tuple(tiers)

    def add(self, sums: Sequence[LookupSums]) -> None:
        """Add to each tier what it was asked. Raises as the port says where no tier takes any.

        What one of several does not take is lost.
        """
        failures: list[BackendError] = []
        done = 0
        for tally, mine in self._divided(sums):
            try:
                tally.add(mine)
            except BackendError as error:
                failures.append(error)
            else:
                done += 1
        if failures and not done:
            raise failures[0]

    def sums(self, namespace: str | None = None) -> list[LookupSums]:
        """Every tier's, under its name."""
        *_, (home, _backend) = self._tiers
        found: list[LookupSums] = []
        for name, backend in self._tiers:
            tally = lookups_of(backend)
            if tally is not None and (tally.lasting or name == home):
                found += [
                    replace(row, tier=row.tier or name)
                    for row in tally.sums(namespace)
                    if name == home or not row.tier
                ]
        return found

    def _divided(self, sums: Sequence[LookupSums]) -> Iterator[tuple[Lookups, list[LookupSums]]]:
        """What goes where."""
        home_name, home = self._tiers[-1]
        at_home, kept_there = LookupRows(), lookups_of(home)
        for name, backend in self._tiers:
            asked = [mine for one in sums if (mine := self._asked(name, one)) is not None]
            tally = lookups_of(backend)
            if name == home_name:
                at_home.add(asked)
            elif tally is not None and tally.lasting:
                rows = LookupRows()
                rows.add(asked)
                yield tally, rows.all()
            else:
                at_home.add(replace(one, tier=name) for one in asked)
        if kept_there is not None:
            yield kept_there, at_home.all()

    def _asked(self, tier: str, one: LookupSums) -> LookupSums | None:
        """What `tier` was asked of lookups that ended alike; ``None``: nothing."""
        names = [name for name, _ in self._tiers]
        answered = names.index(one.tier) if one.tier in names else len(names)
        place = names.index(tier)
        if place == answered:
            return replace(one, tier="")
        whole = one.tokens_found == one.tokens_asked
        if place > answered and whole:
            return None
        return replace(one, tier="", found=0, tokens_found=0, seconds_found=0.0)
