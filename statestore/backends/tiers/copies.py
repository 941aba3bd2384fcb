"""Copies from tier to tier, made in the background: puts go further away, hits come nearer.

Each copy but the home's has a write id of its own: barring a damaged one never bars the sound one
elsewhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from statestore.backends.base import Buffer
from statestore.backends.tiers.recent import Recent
from statestore.backends.tiers.tier import Failures, Tier
from statestore.backends.tiers.write_behind import Task, WriteBehind
from statestore.entry import Entry
from statestore.errors import ContainerError
from statestore.keys import StateKey

_PUT: Final = "put"
_PROMOTION: Final = "promotion"


class Copies:
    """Copies between `tiers`, nearest first, as tasks of `queue`."""

    def __init__(self, tiers: Sequence[Tier], queue: WriteBehind, failures: Failures) -> None:
        self._tiers = tuple(tiers)
        self._home = self._tiers[-1]
        self._queue = queue
        self._failures = failures
        self._recent = Recent()

    def keep(self, entry: Entry, blob: memoryview) -> None:
        """Have a blob at hand that was just read, in case a hit wants it nearer."""
        self._recent.keep(entry.blob, blob)

    def further(self, entry: Entry, tiers: Sequence[Tier], blob: Buffer) -> bool:
        """Put an entry into `tiers` soon; ``False``: too much waits already."""
        work = partial(self._publish, tiers, entry, blob)
        return self._queue.submit(Task(_PUT, entry.key, len(blob), work))

    def nearer(self, entry: Entry, place: int, now: float) -> None:
        """Copy a hit to the tiers nearer than where it was found, if there is room."""
        blob = self._recent.take(entry.blob)
        if self._queue.waits(_PROMOTION, entry.key):
            return
        fresh = replace(entry, created_at=now, used_at=now, score=now, tier="")
        work = partial(self._promote, place, entry, fresh, blob)
        size = entry.blob_bytes if blob is None else len(blob)
        self._queue.submit(Task(_PROMOTION, entry.key, size, work), wait=False)

    def cancel_nearer(self, key: StateKey) -> None:
        """The entry changes or goes: a copy of what it was must not come after that."""
        self._queue.cancel(_PROMOTION, key)

    def _publish(self, tiers: Sequence[Tier], entry: Entry, blob: Buffer) -> bool:
        """``False``: the home failed."""
        sized = replace(entry, blob_bytes=len(blob))
        done = True
        for tier in tiers:
            copy = sized if tier is self._home else copy_of(sized)
            publish = partial(tier.backend.publish, copy, [blob])
            done = self._failures.survives(tier, "put", publish)
        return done

    def _promote(self, place: int, entry: Entry, fresh: Entry, blob: Buffer | None) -> bool:
        if blob is None:
            with suppress(ContainerError):  # damaged meanwhile: the next lookup sees to it
                blob = self._tiers[place].backend.read(entry)
        if blob is None:
            return False
        sized = replace(fresh, blob_bytes=len(blob))
        done = [
            self._failures.survives(
                tier, "promote", partial(tier.backend.publish, copy_of(sized), [blob])
            )
            for tier in self._tiers[:place]
        ]
        return all(done)


def copy_of(entry: Entry) -> Entry:
    """The entry of a copy, under a write id of its own."""
    return replace(entry, blob=f"{entry.key}.{secrets.token_hex(8)}", tier="")
