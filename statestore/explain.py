"""Why a prompt would hit or miss, boundary by boundary.

Reads only; asks the catalog about each boundary that is not stored, so it is for people and tests,
not for requests. It never looks into another namespace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from statestore.entry import Entry, EntryFilter, Status
from statestore.keys import KeyedBoundary, Namespace, Plan, fork_at
from statestore.store import Identity, StateStore


class Why(StrEnum):
    """What is known of one boundary."""

    FOUND = "found"
    NO_OUTPUT = "no output"  # the whole prompt, without what its first new token needs
    QUARANTINED = "quarantined"  # stored, but damaged: never used
    EXPIRED = "expired"
    DELETED = "deleted"
    EVICTED = "evicted"
    OTHER_FINGERPRINT = "other fingerprint"  # the same tokens, by other weights or numerics
    OTHER_SEGMENTS = "other segments"  # the same tokens, cut into other segments
    NEVER_STORED = "never stored"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One boundary and why its state would be used or not."""

    boundary: KeyedBoundary
    why: Why
    detail: str = ""

    @property
    def found(self) -> bool:
        """Whether a lookup would use this state."""
        return self.why is Why.FOUND


def explain(
    store: StateStore, identity: Identity, boundaries: Sequence[KeyedBoundary]
) -> tuple[Verdict, ...]:
    """A verdict for each boundary, in order; the last one is the prompt's end.

    Raises:
        BackendError: the store cannot answer.
    """
    now = store.now()
    last = len(boundaries) - 1
    return tuple(
        _verdict(store, identity, boundary, now, whole=i == last)
        for i, boundary in enumerate(boundaries)
    )


def stored_along(
    store: StateStore, plan: Plan, namespace: Namespace | None = None
) -> tuple[KeyedBoundary, ...]:
    """The plan's boundaries, and the deepest state stored between two of them, where other prompts
    part from this one. Raises as `explain`.
    """
    own = {boundary.key for boundary in plan.boundaries}
    between = [key for key in plan.keys_deepest_first if key not in own]
    found = store.backend.longest(between, store.now())
    if found is None:
        return plan.boundaries
    made = fork_at(plan, found.key, namespace)
    return tuple(sorted((*plan.boundaries, made), key=lambda boundary: boundary.position))


def _verdict(
    store: StateStore, identity: Identity, boundary: KeyedBoundary, now: float, *, whole: bool
) -> Verdict:
    same = list(
        store.list(EntryFilter(namespace=identity.namespace, token_digest=boundary.token_digest))
    )
    for entry in same:
        if entry.key == boundary.key:
            return _of_stored(boundary, entry, now, whole=whole)
    gone = store.departed([boundary.key]).get(boundary.key)
    if gone is not None:
        return Verdict(boundary, _departure(gone.reason), gone.reason)
    return _of_others(boundary, identity, same)


def _of_stored(boundary: KeyedBoundary, entry: Entry, now: float, *, whole: bool) -> Verdict:
    if entry.status is Status.QUARANTINED:
        return Verdict(boundary, Why.QUARANTINED, entry.reason)
    if entry.expires_at is not None and entry.expires_at <= now:
        return Verdict(boundary, Why.EXPIRED)
    if whole and not entry.has_output:
        return Verdict(boundary, Why.NO_OUTPUT, "serves prompts that go on from here")
    return Verdict(boundary, Why.FOUND)


def _of_others(boundary: KeyedBoundary, identity: Identity, same: Sequence[Entry]) -> Verdict:
    """Judge by entries of the same plain tokens under other keys."""
    mine = [entry for entry in same if entry.fingerprint == identity.fingerprint]
    if mine:
        return Verdict(boundary, Why.OTHER_SEGMENTS, f"stored as {mine[0].key.hex[:16]}")
    if same:
        models = ", ".join(sorted({entry.model or entry.fingerprint.hex()[:16] for entry in same}))
        return Verdict(boundary, Why.OTHER_FINGERPRINT, f"stored by {models}")
    return Verdict(boundary, Why.NEVER_STORED)


def _departure(reason: str) -> Why:
    known = {why.value: why for why in (Why.EXPIRED, Why.DELETED, Why.EVICTED, Why.QUARANTINED)}
    return known.get(reason.partition(":")[0], Why.DELETED)
