"""Whether a place has room to spare. What only passes by may then stay for a while: it goes first
when others come, and costs nobody anything until then.
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

from statestore.backends.base import Backend

#: Of a budget: up to here there is room to spare.
SPARE: Final = 0.9


@runtime_checkable
class Headroom(Protocol):
    """A `Backend` that knows what it may hold."""

    def has_headroom(self, namespace: str) -> bool:
        """Whether `namespace` has room to spare, as far as is known without asking anybody."""


def has_headroom(backend: Backend, namespace: str) -> bool:
    """Whether `backend` has a budget, and room to spare in it; without one everything stays for
    ever, so there is none.
    """
    return isinstance(backend, Headroom) and backend.has_headroom(namespace)
