"""What the URL of a place lets it hold, and for how long: for commands that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from statestore.backends.base import Backend
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.budgeted import Budgeted

_UNITS: Final = (("d", 86_400), ("h", 3600), ("min", 60))


@dataclass(frozen=True, slots=True)
class Limits:
    """Budgets, marks, policy and ttl of one place."""

    total_bytes: int | None  # ``None``: no budget of all
    namespaces: Mapping[str, int]  # bytes, by name
    high: float  # of each budget
    low: float | None  # of each budget; ``None``: no more goes than what comes needs, about
    policy: str
    ttl_s: float | None  # of what is put without an expiry of its own

    @classmethod
    def of(cls, backend: Backend) -> Limits | None:
        """``None`` where the URL says nothing."""
        while isinstance(backend, Wrapper):
            if isinstance(backend, Budgeted):
                budget, names = backend.budget, dict(sorted(backend.budget.namespaces.items()))
                total, policy = budget.total_bytes, backend.policy.name
                return cls(total, names, budget.high, budget.low, policy, backend.ttl_s)
            backend = backend.inner
        return None

    def bytes_of(self, namespace: str | None) -> int | None:
        """The budget of all, or of a namespace."""
        return self.total_bytes if namespace is None else self.namespaces.get(namespace)

    @property
    def marks(self) -> str:
        """When room is made, and how much, in words; ``""`` without a budget."""
        if self.total_bytes is None and not self.namespaces:
            return ""
        down = "for what comes" if self.low is None else f"down to {_percent(self.low)}"
        return f"made above {_percent(self.high)} of the budget, {down}; policy {self.policy}"

    @property
    def lifetime(self) -> str:
        """The ttl in words; ``""`` without one."""
        return "" if self.ttl_s is None else f"{exactly(self.ttl_s)} after a state is put"


def exactly(seconds: float) -> str:
    """A duration in the largest unit that it is a whole number of: ``7 d``, ``90 s``."""
    for unit, length in _UNITS:
        if seconds % length == 0:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,g} s"


def _percent(share: float) -> str:
    return f"{100 * share:.4g}%"
