"""Fetch or compute: the state after a prompt, from the longest stored prefix and the rest of its
chunks.

One rule carries the exactness: a cold and a warm run compute the same chunks, because the schedule
is a function of the segments' lengths and a stored state's key names the chunks that made it. So
what comes out is bit for bit the same, wherever the run began.

The store may be down, slow or damaged: that costs computing. States are values here: an engine
never writes to one, so a state may serve any number of questions.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rwkv_runtime import template
from rwkv_runtime.checkpoints import to_save
from rwkv_runtime.engines import Engine, EngineState, check_tokens
from rwkv_runtime.generation import Generated, Stop, generate
from rwkv_runtime.sampling import GREEDY, Sampling
from rwkv_runtime.tokenizer import Tokenizer, require_tokenizer, tokenizer_for
from rwkv_runtime.writer import Writer
from statestore.explain import Verdict, explain
from statestore.keys import KeyedBoundary, Namespace, Plan, Tokens, plan
from statestore.store import Found, Identity, StateStore

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


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer and what it cost."""

    question: str
    answer: str
    cached_tokens: int
    computed_tokens: int
    tokenise_s: float  # of document and question
    ttft_s: float  # from token ids to the first new token
    total_s: float
    prefill: Prefill


class Runtime:
    """Reads prompts through a store. Safe to use from several threads if the engine is.

    Args:
        engine: computes; closes nothing.
        store: where states are kept; ``None`` computes everything afresh. The caller closes it,
            after the runtime.
        namespace: whose states; its salt comes from configuration.
        tokenizer: for calls with text; by default the one that fits the engine's vocabulary.
        model: a name for people, kept with each state.
    """

    def __init__(
        self,
        engine: Engine,
        store: StateStore | None,
        *,
        namespace: Namespace | None = None,
        tokenizer: Tokenizer | None = None,
        model: str = "",
    ) -> None:
        self.engine = engine
        self.store = store
        self.namespace = namespace or Namespace()
        self.model = model
        self._tokenizer = tokenizer or tokenizer_for(engine.vocabulary)
        self._fingerprint = engine.fingerprint.digest
        self.identity = Identity(self._fingerprint, self.namespace.name)
        self._writer = Writer()

    @property
    def tokenizer(self) -> Tokenizer:
        """For text.

        Raises:
            TokenizerError: no tokenizer fits the engine's vocabulary and none was given.
        """
        return require_tokenizer(self._tokenizer, self.engine.vocabulary)

    def prefill(self, segments: Sequence[Tokens], *, progress: Progress | None = None) -> Prefill:
        """Read a prompt, a list of segments of token ids, from the longest stored prefix on.

        Args:
            segments: documents, messages, questions, each tokenised on its own; empty ones add
                nothing.
            progress: told after each chunk.

        Raises:
            PromptError: no segment holds a token.
            TokenError: an id is not an integer, or outside the engine's vocabulary.
        """
        began = time.perf_counter()
        prompt = self._plan(segments)
        tokens = torch.from_numpy(np.frombuffer(prompt.tokens, "<u4").astype(np.int64))
        check_tokens(tokens, self.engine.vocabulary)
        start = self._resume(prompt)
        state, output, last_put = self._compute(prompt, tokens, start, began, progress)
        with torch.inference_mode():
            logits = self.engine.logits(output)
        result = Prefill(
            state,
            output,
            logits,
            cached_tokens=start.position,
            computed_tokens=prompt.n_tokens - start.position,
            seconds=time.perf_counter() - began,
        )
        if last_put is not None:
            self._writer.submit(last_put)
        return result

    def generate(
        self,
        segments: Sequence[Tokens],
        *,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Stop | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Generated]:
        """Read a prompt, then yield new tokens as they come.

        Args:
            segments: as for `prefill`.
            max_tokens: new tokens at most.
            sampling: how to choose a token; greedy by default.
            stop: what ends the text; by default the tokenizer's end token alone.
            progress: as for `prefill`.
        """
        prefill = self.prefill(segments, progress=progress)
        yield from self.continue_from(prefill, max_tokens=max_tokens, sampling=sampling, stop=stop)

    def continue_from(
        self,
        prefill: Prefill,
        *,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Stop | None = None,
    ) -> Iterator[Generated]:
        """New tokens after a prompt that has been read; `prefill` itself stays as it is."""
        return generate(
            self.engine,
            prefill.state,
            prefill.logits,
            tokenizer=self._tokenizer,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop or Stop(),
        )

    def ask(
        self,
        document: str,
        questions: Sequence[str],
        *,
        max_tokens: int = 64,
        progress: Progress | None = None,
    ) -> Iterator[Answer]:
        """Answer questions about a document; each starts from the document's state alone.

        The first question on a new document reads it and leaves its state in the store. The
        template is in `rwkv_runtime.template`.
        """
        began = time.perf_counter()
        document_tokens = self.tokenizer.encode(document)
        document_s = time.perf_counter() - began
        for question in questions:
            yield self._answer(document_tokens, document_s, question, max_tokens, progress)

    def explain(self, segments: Sequence[Tokens]) -> tuple[Verdict, ...]:
        """For each boundary of a prompt whether its state is stored and, where not, why."""
        if self.store is None:
            return ()
        self.flush()
        return explain(self.store, self.identity, self._plan(segments).boundaries)

    def warm_up(self) -> None:
        """Pay now what the first call of a process costs (thread pools, libraries); results are
        thrown away.
        """
        tokens = torch.zeros(self.engine.rule.min_chunk, dtype=torch.int64)
        with torch.inference_mode():
            output, state = self.engine.prefill(tokens, self.engine.initial_state())
            self.engine.logits(output)
            self.engine.decode(0, state)

    def flush(self) -> None:
        """Return once every state handed to the store so far is written, or dropped."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and end the writer; a second call does nothing. Store and engine stay open."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _plan(self, segments: Sequence[Tokens]) -> Plan:
        return plan(segments, self._fingerprint, self.engine.rule, self.namespace)

    def _resume(self, prompt: Plan) -> _Start:
        """Where to go on: the deepest stored boundary, or the empty state."""
        keys = prompt.keys_deepest_first
        while self.store is not None and keys:
            found = self.store.find(self.identity, keys)
            if found is None:
                break
            start = self._load(found)
            if start.position < prompt.n_tokens or start.output is not None:
                return start
            keys = keys[1:]  # a whole prompt without its output serves longer prompts only
        return _Start(0, self.engine.initial_state(), None, 0.0)

    def _load(self, found: Found) -> _Start:
        state, output = self.engine.from_stored(found.state)
        return _Start(found.entry.key.n_tokens, state, output, found.entry.cost_s)

    def _compute(
        self,
        prompt: Plan,
        tokens: Tensor,
        start: _Start,
        began: float,
        progress: Progress | None,
    ) -> tuple[EngineState, Tensor, Callable[[], object] | None]:
        """Run the chunks after `start`. The put of the prompt's end is left to the caller."""
        saved = to_save(prompt, start.position)
        state, output, position = start.state, start.output, start.position
        put = None
        for end in prompt.ends[bisect_right(prompt.ends, start.position) :]:
            if put is not None:
                self._writer.submit(put)
            with torch.inference_mode():
                output, state = self.engine.prefill(tokens[position:end], state)
            cost_s = start.cost_s + time.perf_counter() - began
            put = self._put(saved[end], state, output, cost_s) if end in saved else None
            position = end
            if progress is not None:
                progress(end - start.position, prompt.n_tokens - start.position)
        assert output is not None
        return state, output, put

    def _put(
        self, boundary: KeyedBoundary, state: EngineState, output: Tensor, cost_s: float
    ) -> Callable[[], object] | None:
        if self.store is None:
            return None
        return partial(self._store_state, self.store, boundary, state, output, cost_s)

    def _store_state(
        self,
        store: StateStore,
        boundary: KeyedBoundary,
        state: EngineState,
        output: Tensor,
        cost_s: float,
    ) -> None:
        store.put(
            self.identity,
            boundary.key,
            self.engine.to_stored(state, output),
            token_digest=boundary.token_digest,
            role=boundary.role,
            cost_s=cost_s,
            model=self.model,
        )

    def _answer(
        self,
        document: Sequence[int],
        document_s: float,
        question: str,
        max_tokens: int,
        progress: Progress | None,
    ) -> Answer:
        began = time.perf_counter()
        question_tokens = self.tokenizer.encode(template.question_segment(question))
        tokenised = time.perf_counter()
        prefill = self.prefill([document, question_tokens], progress=progress)
        text, first = "", None
        for new in self.continue_from(prefill, max_tokens=max_tokens, stop=Stop(template.STOP)):
            first = first or time.perf_counter()
            text += new.text
        ended = time.perf_counter()
        return Answer(
            question,
            template.clean_answer(text),
            prefill.cached_tokens,
            prefill.computed_tokens,
            tokenise_s=document_s + tokenised - began,
            ttft_s=(first or ended) - tokenised,
            total_s=document_s + ended - began,
            prefill=prefill,
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a run begins."""

    position: int
    state: EngineState
    output: Tensor | None
    cost_s: float  # what computing up to here once took
