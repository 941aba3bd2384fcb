"""How many bytes a backend may hold, and what one process knows of what it holds."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from statestore.entry import Entry, Evicted, Usage
from statestore.errors import FullError, InputError

#: Seconds for which totals that were read are believed.
FRESH_S: Final = 1.0
#: Puts between two readings of the totals by a process that found itself alone.
TRUST_LIMIT: Final = 16
#: States in a budget below which each put drops no more than it needs, if no low mark is given.
FEW: Final = 2000
#: Of what may be held: what else goes beyond that, if no low mark is given.
SLACK: Final = 0.005
#: States that one eviction removes at most. A put pays for more only where it does not fit
#: otherwise; down to the low mark the next one goes on.
AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Budget:
    """How many blob bytes a backend may hold. Raises `InputError` for what makes no sense."""

    total_bytes: int | None = None
    namespaces: Mapping[str, int] = field(default_factory=dict)  # bytes, by name
    high: float = 1.0  # of each budget: above it room is made
    low: float | None = None  # of each budget: down to it; ``None``: what pays, `slack_bytes`

    def __post_init__(self) -> None:
        for name, limit in {"in all": self.total_bytes, **self.namespaces}.items():
            if limit is not None and limit < 1:
                raise InputError(f"budget {name}: at least one byte, not {limit}")
        for name, mark in {"high": self.high, "low": self.low}.items():
            if mark is not None and not 0.0 < mark <= 1.0:
                raise InputError(
                    f"{name}: {mark:g} is no share of a budget: above 0, and at most 1 or 100%"
                )
        if self.low is not None and self.low >= self.high:
            raise InputError(
                f"low: {self.low:g} is not below high, {self.high:g}: above high room is made, "
                "down to low"
            )

    def slack_bytes(self, limit: int, size: int) -> int:
        """What to free of `limit` bytes beyond what a put of `size` needs, where no low mark says
        so: whole states, so that not every put evicts. Nothing where few fit: there each counts.
        """
        if limit < FEW * size:
            return 0
        slack = SLACK * self.high * limit
        return int(slack // size) * size if size else int(slack)

    def floor_bytes(self, limit: int, size: int) -> int:
        """How much of `limit` bytes is to be held once room was made and `size` bytes are put."""
        if self.low is not None:
            return int(self.low * limit)
        return int(self.high * limit) - self.slack_bytes(limit, size)


class Account:
    """What this process knows of one budget. Its caller holds `lock`."""

    def __init__(self, budget: Budget, limit: int, namespace: str | None = None) -> None:
        self.lock = threading.RLock()
        self.namespace = namespace
        self.limit = limit  # bytes
        self.high = budget.high * limit
        self.promised = 0  # bytes on their way in, by this process
        self.draining = False  # the low mark is not reached yet: the next put goes on
        self._budget = budget
        self._read_bytes = 0
        self._read_pinned = 0
        self._pinned_bytes = 0
        self._read_at: float | None = None
        self._put_bytes = 0  # published by this process since
        self._trust = 1  # puts

    @property
    def used(self) -> int:
        """Bytes held, as far as is known, and those on their way."""
        return self._read_bytes + self._put_bytes + self.promised

    def lacks(self, size: int) -> bool:
        """Whether room is to be made before `size` more bytes."""
        return self.draining or self.used + size > self.high

    def due(self, size: int, at: float) -> bool:
        """Whether totals must be read before `size` more bytes."""
        if self._read_at is None or at - self._read_at > FRESH_S:
            return True
        headroom = self.high - self._read_bytes
        return self._put_bytes > max(headroom / TRUST_LIMIT, (self._trust - 1) * size)

    def crowded(self) -> bool:
        """Whether others write here, and there is not much room."""
        return self._trust == 1 and self.used > 0.9 * self.high

    def target(self, size: int, tries: int = 0) -> int:
        """What to evict down to before `size` bytes, after `tries` whose room others have taken:
        then room for as many more.
        """
        floor = self._budget.floor_bytes(self.limit, size)
        return max(floor - (1 + tries) * size - self.promised, 0)

    def note_gone(self, gone: Evicted) -> None:
        """Room was made, as much as one put pays for."""
        self.draining = self._budget.low is not None and gone.entries >= AT_ONCE

    def note_put(self, entry: Entry) -> None:
        """It was published; its bytes are promised no longer when their room is let go."""
        with self.lock:
            self._put_bytes += entry.blob_bytes
            if entry.pinned:
                self._pinned_bytes += entry.blob_bytes
                self._read_pinned += 1

    def doubt(self) -> None:
        """Something was pinned or unpinned: totals must be read before the next put."""
        with self.lock:
            self._read_at = None

    def note_read(self, usage: Usage, at: float, *, ours: bool = False) -> None:
        """Totals were read; `ours`: just after an eviction, when they tell nothing of others."""
        alone = usage.blob_bytes == self._read_bytes + self._put_bytes
        if not ours:
            self._trust = min(2 * self._trust, TRUST_LIMIT) if alone else 1
        self._read_bytes, self._read_pinned = usage.blob_bytes, usage.pinned
        self._pinned_bytes = usage.pinned_bytes
        self._read_at, self._put_bytes = at, 0

    def hopeless(self, size: int) -> bool:
        """Whether `size` bytes do not fit beside what stays, whatever goes."""
        return self._pinned_bytes + self.promised + size > self.limit

    def refuse_larger(self, entry: Entry) -> None:
        """Raise `FullError` where `entry` alone is more than the budget."""
        if entry.blob_bytes > self.high:
            raise FullError(
                f"{entry.key}: a state of {entry.blob_bytes} bytes is larger than the budget of "
                f"{self._name}, {self.limit} bytes{self._usable}; raise it"
            )

    def full(self, size: int) -> FullError:
        """What to raise where no eviction makes room."""
        return FullError(
            f"no room for {size} bytes in the budget of {self._name}, {self.limit} bytes: "
            f"{self._read_pinned} pinned states of {self._pinned_bytes} bytes stay; "
            "unpin some, or raise it"
        )

    @property
    def _usable(self) -> str:
        share = self._budget.high
        return "" if share == 1.0 else f", of which {int(self.high)} up to the high mark"

    @property
    def _name(self) -> str:
        return "the store" if self.namespace is None else f"namespace {self.namespace!r}"
