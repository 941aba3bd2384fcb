"""What to drop when there is no room: policies, chosen by name. Pure: no clock, no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from statestore.errors import SettingsError
from statestore.eviction.classic import Gdsf, Lfu, Lru
from statestore.eviction.learned import Learned
from statestore.eviction.policy import Judge, Policy, Verdict

__all__ = ["DEFAULT", "POLICIES", "Judge", "Policy", "Verdict", "make_policy"]

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {
    policy.name: policy for policy in (Learned, Gdsf, Lfu, Lru)
}

#: The policy that wins where the others are compared; see ``docs/policies.md``.
DEFAULT: Final = "learned"


def make_policy(name: str = DEFAULT) -> Policy:
    """A new policy. Raises `SettingsError` for a name that is none."""
    if name not in POLICIES:
        raise SettingsError(f"eviction policy {name!r} is not known; one of {', '.join(POLICIES)}")
    return POLICIES[name]()
