"""What a reading leaves to be done behind its answer, on the writer's thread: `Save` a point that
it computed, and `Note` what it used.

Each has rules of its own for the writer's queue: what a full queue drops, and what is then owed to
those who wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from rwkv_runtime.session.forks import Forks, Look
from rwkv_runtime.session.keeper import Keeper
from rwkv_runtime.session.reading import Fresh
from rwkv_runtime.session.writer import Writer
from statestore.accesslog import Access, AccessLog
from statestore.backends.leases import Outcome
from statestore.entry import Entry
from statestore.keys import Plan, Role
from statestore.store import PutOutcome, StateStore


@dataclass(frozen=True, slots=True)
class Save:
    """Stores a point and ends the turn at it."""

    keeper: Keeper
    plan: Plan
    fresh: Fresh

    @property
    def passing(self) -> bool:
        """Whether this is a transient stop: a deeper state is worth more, and will be there
        soon.
        """
        return self.fresh.boundary.role is Role.SPARSE and self.keeper.admission.transient

    def submit(self, writer: Writer, *, wait: bool) -> None:
        """Hand it over, or drop it where there is no room."""
        drop = partial(self.drop, writer) if self.passing else None
        if not writer.submit(self, wait=wait, drop=drop):
            self.drop(writer)

    def drop(self, writer: Writer) -> None:
        """It will not be stored: count it with the store's puts, and let nobody wait for it."""
        self.keeper.store.metrics.puts.labels(outcome=PutOutcome.DROPPED.value).inc()
        # Whoever waits for a stop waits for the next one, and for whoever goes on to it.
        outcome = Outcome.PUBLISHED if self.passing else Outcome.NOT_STORED
        release = None if self.fresh.turn is None else self.fresh.turn.drop(outcome)
        if release is not None and not writer.submit(release, small=True):
            release()

    def __call__(self) -> None:
        """Do it; the turn ends whatever happens."""
        turn, stored = self.fresh.turn, False
        try:
            if turn is not None:
                turn.renew()
            stored = self.keeper.put(self.fresh)
        finally:
            if turn is not None:
                turn.end(Outcome.PUBLISHED if stored else Outcome.NOT_STORED)
        if stored:
            self.keeper.drop_stops(self.plan, self.fresh.boundary)


@dataclass(frozen=True, slots=True)
class Note:
    """Records what a reading used, what was new in its prompt, and the prompt in the access log."""

    store: StateStore | None
    forks: Forks
    log: AccessLog | None
    used: Entry | None
    look: Look
    access: Access | None

    def submit(self, writer: Writer, *, wait: bool) -> None:
        """Hand it over; it holds no state, so it takes no room in the queue."""
        writer.submit(self, wait=wait, small=True)

    def drop(self, writer: Writer) -> None:
        """Nobody waits for it."""

    def __call__(self) -> None:
        """Do it."""
        if self.used is not None and self.store is not None:
            self.store.touch(self.used)
        self.forks.note(self.look)
        if self.access is not None and self.log is not None:
            self.log.append(self.access)


Later = Save | Note
