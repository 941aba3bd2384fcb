"""Fetch or compute: the state after a prompt, from the longest stored prefix and the rest of its
chunks. The orchestration and nothing else.

One rule carries the exactness: a cold and a warm run compute the same chunks, because the schedule
is a function of the segments' lengths and a stored state's key names the chunks that made it. So
what comes out is bit for bit the same, wherever the run began.

The store may be down, slow or damaged: that costs computing. States are values here: an engine
never writes to one, so a state may serve any number of questions.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rwkv_runtime.checkpoints import to_save
from rwkv_runtime.engines import Engine, EngineState, check_tokens
from rwkv_runtime.writer import Put, Writer
from statestore.entry import Entry
from statestore.errors import StateError
from statestore.keys import KeyedBoundary, Namespace, Plan, Tokens, plan
from statestore.store import Found, Identity, PutOutcome, StateStore

#: Called with (tokens done, tokens to do) of one prefill, counted from where it began to compute.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt that has been read."""

    state: EngineState  # after the last token
    output: Tensor  # what `Engine.logits` takes for the last token
    logits: Tensor  # torch.float32 [vocabulary]
    cached_tokens: int
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
    """

    def __init__(
        self,
        engine: Engine,
        store: StateStore | None,
        namespace: Namespace,
        model: str,
        writer: Writer,
    ) -> None:
        self.engine = engine
        self.store = store
        self.namespace = namespace
        self.model = model
        self.identity = Identity(engine.fingerprint.digest, namespace.name)
        self._writer = writer

    def plan(self, segments: Sequence[Tokens]) -> Plan:
        """Chunks, boundaries and keys of a prompt."""
        return plan(segments, self.identity.fingerprint, self.engine.rule, self.namespace)

    def read(
        self, segments: Sequence[Tokens], progress: Progress | None = None
    ) -> tuple[Prefill, tuple[Put, ...]]:
        """Read a prompt. What can wait for the answer comes back, for the caller to submit: the
        note of a hit, and the put of the prompt's end.

        Raises:
            PromptError: no segment holds a token.
            TokenError: an id is not an integer, or outside the engine's vocabulary.
        """
        began = time.perf_counter()
        prompt = self.plan(segments)
        tokens = torch.from_numpy(np.frombuffer(prompt.tokens, "<u4").astype(np.int64))
        check_tokens(tokens, self.engine.vocabulary)
        start = self._resume(prompt)
        end, last_put = self._compute(prompt, tokens, start, progress)
        later = tuple(put for put in (self._note_of(start), last_put) if put is not None)
        assert end.output is not None
        with torch.inference_mode():
            logits = self.engine.logits(end.output)
        logits = logits.clone()  # outside inference mode: a caller may write to it
        result = Prefill(
            end.state,
            end.output,
            logits,
            cached_tokens=start.position,
            computed_tokens=prompt.n_tokens - start.position,
            seconds=time.perf_counter() - began,
        )
        return result, later

    def submit(self, put: Put, *, wait: bool = True) -> None:
        """Hand something over to the writer; what it drops is counted with the store's puts."""
        if not self._writer.submit(put, wait=wait) and self.store is not None:
            self.store.metrics.puts.labels(outcome=PutOutcome.DROPPED.value).inc()

    def _resume(self, prompt: Plan) -> _Point:
        """Where to go on: the deepest stored boundary, or the empty state."""
        keys = prompt.keys_deepest_first
        while self.store is not None and keys:
            found = self.store.find(self.identity, keys, touch=False)
            if found is None:
                break
            point = self._load(self.store, found)
            if point is not None and (point.output is not None or point.position < prompt.n_tokens):
                return point
            # A whole prompt without its output serves longer prompts only.
            keys = keys[keys.index(found.entry.key) + 1 :]
        return _Point(0, self.engine.initial_state(), None, 0.0)

    def _load(self, store: StateStore, found: Found) -> _Point | None:
        try:
            state, output = self.engine.from_stored(found.state)
        except StateError as error:  # sound, of this very key, and yet no state of this engine
            store.reject(found.entry, f"StateError: {error}")
            return None
        entry = found.entry
        return _Point(entry.key.n_tokens, state, output, entry.cost_s, entry)

    def _compute(
        self, prompt: Plan, tokens: Tensor, start: _Point, progress: Progress | None
    ) -> tuple[_Point, Put | None]:
        """Run the chunks after `start`; states go to the writer, the last one's put comes back."""
        saved = to_save(prompt, start.position)
        point, put = start, None
        for end in prompt.ends[bisect_right(prompt.ends, start.position) :]:
            point = self._advance(point, tokens, end)
            put = self._put(saved[end], point) if end in saved else None
            if put is not None and end < prompt.n_tokens:
                self.submit(put)
            if progress is not None:
                progress(end - start.position, prompt.n_tokens - start.position)
        return point, put

    def _advance(self, point: _Point, tokens: Tensor, end: int) -> _Point:
        """One chunk, up to `end`."""
        began = time.perf_counter()
        with torch.inference_mode():
            output, state = self.engine.prefill(tokens[point.position : end], point.state)
        return _Point(end, state, output, point.cost_s + time.perf_counter() - began)

    def _note_of(self, start: _Point) -> Put | None:
        """A database's write lock is nothing to wait for before an answer."""
        if self.store is None or start.entry is None:
            return None
        return partial(self.store.touch, start.entry)

    def _put(self, boundary: KeyedBoundary, point: _Point) -> Put | None:
        return None if self.store is None else partial(self._store, self.store, boundary, point)

    def _store(self, store: StateStore, boundary: KeyedBoundary, point: _Point) -> None:
        store.put(
            self.identity,
            boundary.key,
            self.engine.to_stored(point.state, point.output),
            token_digest=boundary.token_digest,
            role=boundary.role,
            cost_s=point.cost_s,
            model=self.model,
        )


@dataclass(frozen=True, slots=True)
class _Point:
    """A place along a prompt."""

    position: int  # tokens read
    state: EngineState
    output: Tensor | None
    cost_s: float  # seconds that computing up to here took, whenever that was
    entry: Entry | None = None  # what it was loaded from
