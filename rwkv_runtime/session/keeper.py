"""What becomes of a session's states in its store: points are put there, and stops that have served
their purpose are dropped. Runs behind the answers, on the writer's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rwkv_runtime.engines import Engine
from rwkv_runtime.session.admission import Admission
from rwkv_runtime.session.checkpoints import stops_below
from rwkv_runtime.session.reading import Fresh
from statestore.backends.base import Backend, Deferring
from statestore.backends.headroom import has_headroom
from statestore.backends.tiers.backend import Tiered
from statestore.complaints import Complaints
from statestore.entry import Change, Entry
from statestore.errors import BackendError
from statestore.eviction.policy import STOP_S
from statestore.keys import KeyedBoundary, Plan, Role, StateKey
from statestore.store import Identity, PutOutcome, StateStore

log = logging.getLogger(__name__)
_complaints: Final = Complaints(log)

SETTLE_S: Final = 2.0  # as long as puts on their way to other tiers are waited for


@dataclass(frozen=True, slots=True)
class Keeper:
    """Keeps the states of one engine in one store, for one namespace."""

    engine: Engine
    store: StateStore
    identity: Identity
    model: str  # a name for people
    admission: Admission

    def put(self, fresh: Fresh) -> bool:
        """Store a point now; whether it is there for others to find."""
        boundary, point = fresh.boundary, fresh.point
        outcome = self.store.put(
            self.identity,
            boundary.key,
            self.engine.to_stored(point.state, point.output),
            token_digest=boundary.token_digest,
            role=boundary.role,
            cost_s=point.cost_s,
            model=self.model,
            ancestor_tokens=fresh.ancestor_tokens,
            durable=fresh.turn is not None,
        )
        return outcome is not PutOutcome.DROPPED

    def drop_stops(self, plan: Plan, end: KeyedBoundary) -> None:
        """The end of a segment is stored, so the stops before it have served their purpose. Those
        below a prompt's end may still serve a prompt that parts from this one: they stay for a
        while, where there is room. A fork drops nothing: it has an end above it, which decides.
        """
        if end.role in (Role.SPARSE, Role.FORK) or not self.admission.transient:
            return
        stops = [stop.key for stop in stops_below(plan, end)]
        if not stops:
            return
        store = self.store
        stay = end.role is Role.PROMPT and has_headroom(store.backend, self.identity.namespace)
        if isinstance(store.backend, Deferring):
            store.backend.flush(SETTLE_S)  # a copy that still waits would come after its removal
        *nearer, home = _places(store.backend)
        for place in (*nearer, home):
            try:
                for entry in self._dropped(stops, end, place, stay=stay):
                    if place is home:  # a state counts once
                        freed = (entry.key.n_tokens, entry.blob_bytes)
                        store.metrics.evicted("admission", "superseded", 1, *freed)
            except BackendError as error:
                store.metrics.errors.labels(operation="delete").inc()
                _complaints.add("stops", "left stops along a stored segment behind: %s", error)

    def _dropped(
        self, stops: Sequence[StateKey], end: KeyedBoundary, place: Backend, *, stay: bool
    ) -> Iterator[Entry]:
        """Let those in `place` go, or expire where they `stay`; what went."""
        for key in stops:
            entry = place.longest([key], self.store.now())
            if entry is None or not _has_served(entry, end):
                continue
            if stay:
                until = Change(expires_at=self.store.now() + STOP_S)
                place.update(key, until, blob=entry.blob)
            elif place.delete(key, "evicted", blob=entry.blob):
                yield entry


def _places(backend: Backend) -> Sequence[Backend]:
    """Each place that may have a copy of its own."""
    return backend.places if isinstance(backend, Tiered) else [backend]


def _has_served(entry: Entry, end: KeyedBoundary) -> bool:
    """Whether a stop below `end` may be dropped. A stop that a prompt came back to may be wanted
    again; below a segment's end a hit only means that another worker took over.
    """
    used = entry.hits > 0 and end.role is Role.PROMPT
    return entry.role is Role.SPARSE and not entry.pinned and not used
