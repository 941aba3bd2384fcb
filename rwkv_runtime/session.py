"""Fetch or compute: the state after a prompt, from the longest stored prefix and the rest of its
chunks. The orchestration and nothing else.

One rule carries the exactness: a cold and a warm run compute the same chunks, because the schedule
is a function of the segments' lengths and a stored state's key names the chunks that made it. So
what comes out is bit for bit the same, wherever the run began.

Many who want one document compute it once (`reading`, `statestore.once`). A prompt that leaves no
state worth saving asks nobody, and costs one lookup.

The store may be down, slow or damaged: that costs computing. States are values here: an engine
never writes to one, so a state may serve any number of questions.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rwkv_runtime.admission import Admission
from rwkv_runtime.checkpoints import stops_below, to_save
from rwkv_runtime.engines import Engine, EngineState, check_tokens
from rwkv_runtime.forks import Forks, Look
from rwkv_runtime.pace import Pace
from rwkv_runtime.reading import AtOnce, Bookmark, Fresh, Point, Progress, Reading, Turns
from rwkv_runtime.writer import Put, Writer
from statestore.accesslog import Access, AccessLog
from statestore.backends.headroom import has_headroom
from statestore.backends.leases import Leases, Outcome
from statestore.entry import Change, Entry
from statestore.errors import BackendError, StateError
from statestore.eviction.policy import STOP_S
from statestore.keys import KeyedBoundary, Namespace, Plan, Role, Tokens, plan
from statestore.once import Once
from statestore.store import Found, Identity, PutOutcome, StateStore

log = logging.getLogger(__name__)

__all__ = ["Bookmark", "Prefill", "Progress", "Session"]


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt that has been read."""

    state: EngineState  # after the last token
    output: Tensor  # what `Engine.logits` takes for the last token
    logits: Tensor  # torch.float32 [vocabulary]
    cached_tokens: int  # whose reading was spared: from the store, or from another's reading
    computed_tokens: int
    seconds: float  # from token ids to logits


class Session:
    """One engine over one store, for one namespace.

    Args:
        engine: computes.
        store: where states are kept; ``None`` computes everything afresh.
        namespace: whose states.
        model: a name for people, kept with each state.
        writer: takes the puts.
        admission: which states are worth keeping.
        lease_s: seconds for which the right to compute a state is taken at least.
        access_log: gets a line for each prompt.

    Attributes:
        turns: where everything is computed.
    """

    def __init__(
        self,
        engine: Engine,
        store: StateStore | None,
        namespace: Namespace,
        model: str,
        writer: Writer,
        admission: Admission,
        lease_s: float,
        access_log: AccessLog | None = None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.namespace = namespace
        self.model = model
        self.identity = Identity(engine.fingerprint.digest, namespace.name)
        self.pace = Pace(engine.rule.chunk)
        self.once = Once[Point](self._leases, least_ttl_s=lease_s)
        self._writer = writer
        self.admission = admission
        self.forks = Forks(store, admission)
        self._log = access_log
        self.turns: Turns = AtOnce()

    def within(self, namespace: Namespace | None) -> Session:
        """The same for another namespace: engine, store, writer and turns are shared, and no state
        is. ``None``: this one.
        """
        if namespace is None or namespace == self.namespace:
            return self
        other = copy.copy(self)
        other.namespace = namespace
        other.identity = Identity(self.identity.fingerprint, namespace.name)
        return other

    def through(self, turns: Turns) -> Session:
        """The same, computing in turns with others."""
        other = copy.copy(self)
        other.turns = turns
        return other

    def plan(self, segments: Sequence[Tokens]) -> Plan:
        """Chunks, boundaries and keys of a prompt."""
        return plan(segments, self.identity.fingerprint, self.engine.rule, self.namespace)

    def read(
        self,
        segments: Sequence[Tokens],
        progress: Progress | None = None,
        *,
        named_segments: int = 0,
        grows: bool = False,
        bookmark: Bookmark | None = None,
    ) -> tuple[Prefill, tuple[Put, ...]]:
        """Read a prompt. What can wait for the answer comes back, for the caller to submit: the
        note of a hit, and the put of the prompt's end.

        Args:
            segments: of token ids.
            progress: told after each chunk.
            named_segments: so many, from the first on, were asked for by name: their ends are
                kept whatever they are worth.
            grows: the next prompt will begin with these segments; the last state that it can
                begin from is kept whatever it is worth.
            bookmark: spares the first segment to the next prompt that begins with it, stored or
                not.

        Raises:
            PromptError: no segment holds a token.
            TokenError: an id is not an integer, or outside the engine's vocabulary.
        """
        began = time.perf_counter()
        prompt = self.plan(segments)
        tokens = torch.from_numpy(np.frombuffer(prompt.tokens, "<u4").astype(np.int64))
        check_tokens(tokens, self.engine.vocabulary)
        start = self._start(prompt, bookmark)
        look = self.forks.look(prompt, start.position, self.namespace)
        rule = partial(self._to_save, prompt, start, named_segments, grows)
        reading = Reading(self, prompt, tokens, start, progress=progress, bookmark=bookmark)
        reading.run(
            rule(look.at_hand),
            revised=look.revised(rule),
            shared=self.store is not None and not self._writer.closed,
        )
        end = reading.point
        assert end.output is not None
        try:
            logits = self.turns.quick(partial(self._logits, end.output))
            logits = logits.clone()  # outside inference mode: a caller may write to it
        except BaseException:
            reading.give_up()
            raise
        result = Prefill(
            end.state,
            end.output,
            logits,
            cached_tokens=prompt.n_tokens - reading.computed,
            computed_tokens=reading.computed,
            seconds=time.perf_counter() - began,
        )
        access = None if self._log is None else self._access(prompt, result)
        return result, self._later(prompt, reading, look, access)

    def submit(self, puts: Iterable[Put], *, wait: bool = True) -> None:
        """Hand things over to the writer; states that it drops are counted with the store's puts.

        Interrupted it drops them all: nobody waits for a state that will not come.
        """
        left = list(puts)
        try:
            while left:
                put = left[0]
                gives_way = isinstance(put, _Save) and put.passing
                drop = partial(self._drop, put) if gives_way else None
                small = isinstance(put, _Note)
                if not self._writer.submit(put, wait=wait, small=small, drop=drop):
                    self._drop(put)
                del left[0]
        except BaseException:
            for put in left:
                self._drop(put)
            raise

    def _drop(self, put: Put) -> None:
        if not isinstance(put, _Save):
            return
        put.store.metrics.puts.labels(outcome=PutOutcome.DROPPED.value).inc()
        # Whoever waits for a stop waits for the next one, and for whoever goes on to it.
        outcome = Outcome.PUBLISHED if put.passing else Outcome.NOT_STORED
        release = None if put.fresh.turn is None else put.fresh.turn.drop(outcome)
        if release is not None and not self._writer.submit(release, small=True):
            release()

    # For a reading.

    def find(self, plan: Plan, beyond: int, *, tally: bool = False) -> Point | None:
        """The deepest stored chunk end behind `beyond` tokens; with `tally` it is the prompt's
        lookup, which counts for the hit rate.
        """
        keys = plan.keys_behind(beyond)
        while self.store is not None and keys:
            began = time.perf_counter()
            found = self.store.find(self.identity, keys, touch=False, tally=tally)
            tally = False
            if found is None:
                break
            point = self._load(self.store, found)
            self.pace.fetched(time.perf_counter() - began)
            if point is not None and (point.output is not None or point.position < plan.n_tokens):
                return point
            # A whole prompt without its output serves longer prompts only.
            keys = keys[keys.index(found.entry.key) + 1 :]
        return None

    def save(self, plan: Plan, fresh: Fresh) -> None:
        """Hand a point to the writer."""
        if self.store is not None:
            self.submit([_Save(self, self.store, plan, fresh)])

    # The ways of one prompt.

    def _start(self, prompt: Plan, bookmark: Bookmark | None) -> Point:
        """Where to begin: what this process has at hand, the deepest stored state, or the empty
        one.
        """
        marked = None if bookmark is None else bookmark.fits(prompt)
        if marked is not None:
            return self.find(prompt, marked.position) or marked
        at_hand = self.once.held(prompt.keys_deepest_first)
        return at_hand or self.find(prompt, 0, tally=True) or self._origin()

    def _logits(self, output: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.engine.logits(output)

    def _origin(self) -> Point:
        return Point(0, self.engine.initial_state(), None, 0.0, 0)

    def _to_save(
        self, prompt: Plan, start: Point, named: int, grows: bool, fork: KeyedBoundary | None
    ) -> tuple[KeyedBoundary, ...]:
        if self.store is None:
            return ()
        known = (start.position, start.lasting, self.admission, self.pace.costs)
        return tuple(to_save(prompt, *known, named, grows=grows, fork=fork))

    def _load(self, store: StateStore, found: Found) -> Point | None:
        try:
            state, output = self.engine.from_stored(found.state)
        except StateError as error:  # sound, of this very key, and yet no state of this engine
            store.reject(found.entry, f"StateError: {error}")
            return None
        entry = found.entry
        position = entry.key.n_tokens
        lasting = entry.ancestor_tokens if entry.role is Role.SPARSE else position
        return Point(position, state, output, entry.cost_s, lasting, entry)

    def _later(
        self, prompt: Plan, reading: Reading, look: Look, access: Access | None
    ) -> tuple[Put, ...]:
        """A database's write lock is nothing to wait for before an answer."""
        later: list[Put] = []
        if reading.used is not None or look.notable or access is not None:
            later.append(_Note(self, reading.used, look, access))
        if reading.fresh is not None and self.store is not None:
            later.append(_Save(self, self.store, prompt, reading.fresh))
        return tuple(later)

    def _access(self, prompt: Plan, result: Prefill) -> Access:
        ends = [key for key in prompt.stable_behind(0) if key.n_tokens < prompt.n_tokens]
        ends.append(prompt.keys[-1])
        return Access(
            time_s=time.time() - result.seconds,
            namespace=self.namespace.name,
            n_tokens=prompt.n_tokens,
            positions=[key.n_tokens for key in ends],
            digests=[key.digest for key in ends],
            segments=[b.position for b in prompt.boundaries if b.role is Role.SEGMENT],
            stable=prompt.boundaries[-1].stable,
            cached_tokens=result.cached_tokens,
            seconds=result.seconds,
        )

    def note(self, used: Entry | None, look: Look, access: Access | None) -> None:
        """Write down what a reading used, what was new in it, and that it was."""
        if used is not None and self.store is not None:
            self.store.touch(used)
        self.forks.note(look)
        if access is not None and self._log is not None:
            self._log.append(access)

    def _leases(self) -> Leases | None:
        return None if self.store is None else self.store.leases

    def put(self, store: StateStore, fresh: Fresh) -> bool:
        """Store a point now; whether it is there, for whoever looks."""
        boundary, point = fresh.boundary, fresh.point
        outcome = store.put(
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

    def drop_stops(self, store: StateStore, plan: Plan, end: KeyedBoundary) -> None:
        """The end of a segment is stored: the stops on its way have served. Those below a prompt's
        end may serve one that leaves it: where there is room, they stay for a while. A fork has an
        end above it, which decides.
        """
        if end.role in (Role.SPARSE, Role.FORK) or not self.admission.transient:
            return
        stay = end.role is Role.PROMPT and has_headroom(store.backend, self.namespace.name)
        try:
            for stop in stops_below(plan, end):
                entry = store.backend.longest([stop.key], store.now())
                if entry is None or not _has_served(entry, end):
                    continue
                if stay:
                    until = Change(expires_at=store.now() + STOP_S)
                    store.backend.update(entry.key, until, blob=entry.blob)
                    continue
                if store.backend.delete(entry.key, "evicted", blob=entry.blob):
                    freed = (entry.key.n_tokens, entry.blob_bytes)
                    store.metrics.evicted("admission", "superseded", 1, *freed)
        except BackendError as error:
            store.metrics.errors.labels(operation="delete").inc()
            log.warning("left stops along a stored segment behind: %s", error)


def _has_served(entry: Entry, end: KeyedBoundary) -> bool:
    """Whether a stop below `end` may go. One that a prompt came back to may be come back to again;
    below a segment's end it was somebody who took over.
    """
    used = entry.hits > 0 and end.role is Role.PROMPT
    return entry.role is Role.SPARSE and not entry.pinned and not used


@dataclass(frozen=True, slots=True)
class _Note:
    """Writes down what became of a reading, in the writer's thread."""

    session: Session
    used: Entry | None
    look: Look
    access: Access | None

    def __call__(self) -> None:
        self.session.note(self.used, self.look, self.access)


@dataclass(frozen=True, slots=True)
class _Save:
    """Stores a point and ends the turn at it, in the writer's thread."""

    session: Session
    store: StateStore
    plan: Plan
    fresh: Fresh

    @property
    def passing(self) -> bool:
        """A transient stop: a deeper state is worth more, and soon there."""
        return self.fresh.boundary.role is Role.SPARSE and self.session.admission.transient

    def __call__(self) -> None:
        turn, stored = self.fresh.turn, False
        try:
            if turn is not None:
                turn.renew()
            stored = self.session.put(self.store, self.fresh)
        finally:
            if turn is not None:
                turn.end(Outcome.PUBLISHED if stored else Outcome.NOT_STORED)
        if stored:
            self.session.drop_stops(self.store, self.plan, self.fresh.boundary)
