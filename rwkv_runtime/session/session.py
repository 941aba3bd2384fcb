"""Fetch or compute: the state after a prompt, from the longest stored prefix and the remaining
chunks. The orchestration and nothing else.

One rule carries the exactness: a cold and a warm run compute the same chunks, because the schedule
is a function of the segments' lengths, and a stored state's key names the chunks that made it. So
the result is bit for bit the same, wherever the run began.

Many callers who want one document compute it once (`reading`, `statestore.once`). A prompt that
leaves no state worth saving coordinates with nobody, and costs one lookup.

The store may be down, slow or damaged: that costs computing. States are values here: an engine
never writes to one, so a state may serve any number of questions.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rwkv_runtime.engines import Engine, EngineState, check_tokens
from rwkv_runtime.session.admission import Admission
from rwkv_runtime.session.behind import Later, Note, Save
from rwkv_runtime.session.checkpoints import to_save
from rwkv_runtime.session.forks import Forks, Look
from rwkv_runtime.session.keeper import Keeper
from rwkv_runtime.session.pace import Pace
from rwkv_runtime.session.reading import AtOnce, Bookmark, Fresh, Point, Progress, Reading, Turns
from rwkv_runtime.session.writer import Writer
from statestore.accesslog import Access, AccessLog
from statestore.backends.leases import Leases
from statestore.errors import StateError
from statestore.keys import KeyedBoundary, Namespace, Plan, Role, Tokens, plan
from statestore.once import Once
from statestore.store import Found, Identity, StateStore


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
        keeper: stores its states; ``None`` without a store.
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
        self.identity = Identity(engine.fingerprint.digest, namespace.name)
        self.pace = Pace(engine.rule.chunk)
        self.once = Once[Point](self._leases, least_ttl_s=lease_s)
        self.turns: Turns = AtOnce()
        self._admission = admission
        self._writer = writer
        self.forks = Forks(store, admission)
        self._log = access_log
        self.keeper: Keeper | None = None
        if store is not None:
            self.keeper = Keeper(engine, store, self.identity, model, admission)

    def within(self, namespace: Namespace | None) -> Session:
        """The same for another namespace: engine, store, writer and turns are shared, and no state
        is. ``None``: this one.
        """
        if namespace is None or namespace == self.namespace:
            return self
        other = copy.copy(self)
        other.namespace = namespace
        other.identity = Identity(self.identity.fingerprint, namespace.name)
        if self.keeper is not None:
            other.keeper = replace(self.keeper, identity=other.identity)
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
    ) -> tuple[Prefill, tuple[Later, ...]]:
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
        return result, self._later(prompt, reading, look, result)

    def submit(self, later: Iterable[Later], *, wait: bool = True) -> None:
        """Hand things over to the writer; states that it drops are counted with the store's puts.

        Interrupted it drops them all: nobody waits for a state that will not come.
        """
        left = list(later)
        try:
            while left:
                left[0].submit(self._writer, wait=wait)
                del left[0]
        except BaseException:
            for put in left:
                put.drop(self._writer)
            raise

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
        if self.keeper is not None:
            self.submit([Save(self.keeper, plan, fresh)])

    # The ways of one prompt.

    def _start(self, prompt: Plan, bookmark: Bookmark | None) -> Point:
        """Where to begin: the state that this process has at hand, the deepest stored one, or the
        empty one.
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
        known = (start.position, start.lasting, self._admission, self.pace.costs)
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
        self, prompt: Plan, reading: Reading, look: Look, result: Prefill
    ) -> tuple[Later, ...]:
        """What to do behind the answer, since a database's write lock is nothing to wait for before
        it.
        """
        later: list[Later] = []
        access = None if self._log is None else self._access(prompt, result)
        if reading.used is not None or look.notable or access is not None:
            later.append(Note(self.store, self.forks, self._log, reading.used, look, access))
        if reading.fresh is not None and self.keeper is not None:
            later.append(Save(self.keeper, prompt, reading.fresh))
        return tuple(later)

    def _access(self, prompt: Plan, result: Prefill) -> Access:
        return Access.of(
            prompt,
            self.namespace.name,
            time_s=time.time() - result.seconds,
            cached_tokens=result.cached_tokens,
            seconds=result.seconds,
        )

    def _leases(self) -> Leases | None:
        return None if self.store is None else self.store.leases
