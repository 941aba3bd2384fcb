"""Where a prompt leaves those before it, by what its store has seen: the rule of second sight.

A prompt that must compute more than a state is worth asks how far it was seen before; what is new
in it is noted behind its answer. A prompt that is found, or nearly, asks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rwkv_runtime.admission import Admission
from statestore.backends.sightings import Unfailing, sightings_of
from statestore.keys import KeyedBoundary, Namespace, Plan, fork_at, fork_place, marks
from statestore.store import StateStore


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a prompt before it is computed."""

    fork: KeyedBoundary | None = None  # the deepest chunk end that it shares with one before it
    unseen: tuple[bytes, ...] = ()  # marks to note


NOTHING: Final = Sight()


class Forks:
    """The index of `store`, or one of this process. Never raises because of the store."""

    def __init__(self, store: StateStore | None, admission: Admission) -> None:
        self._admission = admission
        self._index = (
            Unfailing(sightings_of(store.backend), store.metrics)
            if store is not None and admission.forks
            else None
        )

    def look(self, plan: Plan, beyond: int, namespace: Namespace) -> Sight:
        """What is known of `plan`, of which so many tokens need not be computed."""
        too_little = plan.n_tokens - beyond < self._admission.gain_tokens
        if self._index is None or too_little:
            return NOTHING
        keys = plan.stable_behind(0)
        found = sum(key.n_tokens <= beyond for key in keys)
        unknown = tuple(marks([key.digest for key in keys], found))
        seen = self._index.seen(unknown) if unknown else 0
        end = len(keys) - 1 if plan.boundaries[-1].stable else len(keys)
        place = fork_place(found + seen, found, end)
        fork = None if place is None else fork_at(plan, keys[place], namespace)
        return Sight(fork, unknown[seen:])

    def note(self, sight: Sight) -> None:
        """A prompt was read; behind its answer."""
        if self._index is not None and sight.unseen:
            self._index.note(sight.unseen)
