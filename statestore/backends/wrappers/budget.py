"""How many bytes a backend may hold, and what one process knows of what it holds."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from statestore.entry import Entry, Usage
from statestore.errors import FullError, InputError

#: Seconds for which totals that were read are believed.
FRESH_S: Final = 1.0
#: Puts between two readings of the totals by a process that found itself alone.
TRUST_LIMIT: Final = 16
#: States in a budget below which each put drops no more than it needs.
FEW: Final = 2000


@dataclass(frozen=True, slots=True)
class Budget:
    """How many blob bytes a backend may hold. Raises `InputError` for what makes no sense."""

    total_bytes: int | None = None
    namespaces: Mapping[str, int] = field(default_factory=dict)  # bytes, by name
    high: float = 1.0  # of a budget: room is made above it
    low: float = 0.995  # of a budget: down to it

    def __post_init__(self) -> None:
        for name, limit in {"in all": self.total_bytes, **self.namespaces}.items():
            if limit is not None and limit < 1:
                raise InputError(f"budget {name}: at least one byte, not {limit}")
        if not 0.0 < self.low <= self.high <= 1.0:
            raise InputError(f"budget: 0 < low {self.low} <= high {self.high} <= 1 does not hold")

    def slack_bytes(self, limit: int, size: int) -> int:
        """What to free of `limit` bytes beyond what a put of `size` needs: whole states, so that
        not every put evicts. Nothing where few fit: there each of them counts.
        """
        if limit < FEW * size:
            return 0
        share = self.high - self.low
        return int(share * limit // size) * size if size else int(share * limit)


class Account:
    """What this process knows of one budget. Its caller holds `lock`."""

    def __init__(self, budget: Budget, limit: int, namespace: str | None = None) -> None:
        self.lock = threading.RLock()
        self.namespace = namespace
        self.limit = limit  # bytes
        self.high = budget.high * limit
        self.promised = 0  # bytes on their way in, by this process
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
        slack = self._budget.slack_bytes(self.limit, size) + tries * size
        return max(int(self.high) - slack - size - self.promised, 0)

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
                f"{self._name}, {self.limit} bytes; raise it"
            )

    def full(self, size: int) -> FullError:
        """What to raise where no eviction makes room."""
        return FullError(
            f"no room for {size} bytes in the budget of {self._name}, {self.limit} bytes: "
            f"{self._read_pinned} pinned states of {self._pinned_bytes} bytes stay; "
            "unpin some, or raise it"
        )

    @property
    def _name(self) -> str:
        return "the store" if self.namespace is None else f"namespace {self.namespace!r}"
