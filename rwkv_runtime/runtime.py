"""The way in: prompts, questions and new tokens, over one engine and one store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from rwkv_runtime.engines import Engine
from rwkv_runtime.generation import Continuation, Generated, Stop
from rwkv_runtime.questions import Answer, Questions
from rwkv_runtime.replies import Replies
from rwkv_runtime.sampling import GREEDY, Sampling
from rwkv_runtime.session import Prefill, Progress, Session
from rwkv_runtime.session.admission import Admission
from rwkv_runtime.session.writer import Writer
from rwkv_runtime.tokenizer import Tokenizer, require_tokenizer, tokenizer_for
from statestore.accesslog import AccessLog
from statestore.backends import ending
from statestore.backends.fields import fitting
from statestore.explain import Verdict, explain, stored_along
from statestore.keys import Namespace, Tokens
from statestore.store import StateStore

__all__ = ["Answer", "Runtime"]


class Runtime:
    """Reads prompts through a store. Safe to use from several threads if the engine is.

    Args:
        engine: computes; closes nothing.
        store: where states are kept; ``None`` computes everything afresh. The caller closes it,
            after the runtime.
        namespace: whose states; its salt comes from configuration.
        tokenizer: for calls with text; by default the one that fits the engine's vocabulary.
        model: a name for people, of which each state keeps 256 characters.
        admission: which states are worth keeping; see `rwkv_runtime.session.admission`.
        lease_s: seconds for which the right to compute a state is held at least; a runtime that
            dies on another machine is waited for as long.
        access_log: a file that gets a line for each prompt, to be replayed by ``statestore
            simulate``; see `statestore.accesslog`.
        flush_on_sigterm: write what waits before SIGTERM ends the process. Where the signal has a
            handler already, or this is not the main thread, nothing is changed.
    """

    def __init__(
        self,
        engine: Engine,
        store: StateStore | None,
        *,
        namespace: Namespace | None = None,
        tokenizer: Tokenizer | None = None,
        model: str = "",
        admission: Admission | None = None,
        lease_s: float = 10.0,
        access_log: Path | None = None,
        flush_on_sigterm: bool = True,
    ) -> None:
        self.engine = engine
        self.store = store
        self._tokenizer = tokenizer or tokenizer_for(engine.vocabulary)
        self._writer = Writer()
        self._session = Session(
            engine,
            store,
            namespace or Namespace(),
            fitting(model, "model"),  # or every put would be refused for it, behind the answers
            self._writer,
            admission or Admission(),
            lease_s,
            None if access_log is None else AccessLog(access_log),
        )
        if store is not None and flush_on_sigterm:
            ending.flush_on_sigterm()

    @property
    def tokenizer(self) -> Tokenizer:
        """For text.

        Raises:
            TokenizerError: no tokenizer fits the engine's vocabulary and none was given.
        """
        return require_tokenizer(self._tokenizer, self.engine.vocabulary)

    @property
    def session(self) -> Session:
        """What requests are read through, for those who share out the computing themselves."""
        return self._session

    def prefill(
        self,
        segments: Sequence[Tokens],
        *,
        progress: Progress | None = None,
        namespace: Namespace | None = None,
    ) -> Prefill:
        """Read a prompt, a list of segments of token ids, from the longest stored prefix on.

        What others are reading at this moment, in any process, is waited for and not read again.

        Args:
            segments: documents, messages, questions, each tokenised on its own; empty ones add
                nothing.
            progress: told after each chunk.
            namespace: whose states; by default the runtime's.

        Raises:
            PromptError: no segment holds a token.
            TokenError: an id is not an integer, or outside the engine's vocabulary.
        """
        return self._read(segments, progress, namespace)

    def warm(
        self,
        segments: Sequence[Tokens],
        *,
        progress: Progress | None = None,
        namespace: Namespace | None = None,
    ) -> Prefill:
        """Read a prompt so that later ones find it: the ends of its segments are stored, however
        short they are.

        Args and errors as for `prefill`.
        """
        return self._read(segments, progress, namespace, named_segments=len(segments))

    def generate(
        self,
        segments: Sequence[Tokens],
        *,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Stop | None = None,
        grows: bool = False,
        progress: Progress | None = None,
        namespace: Namespace | None = None,
    ) -> Iterator[Generated]:
        """Read a prompt, then yield new tokens as they come.

        Args:
            segments: as for `prefill`.
            max_tokens: new tokens at most.
            sampling: how to choose a token; greedy by default.
            stop: what ends the text; by default the tokenizer's end token alone.
            grows: the next prompt will begin with these segments, as in a chat: what it can begin
                from is stored, however little that spares.
            progress: as for `prefill`.
            namespace: as for `prefill`.
        """
        yield from self.reply(
            segments,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            grows=grows,
            progress=progress,
            namespace=namespace,
        )[1]

    def reply(
        self,
        segments: Sequence[Tokens],
        *,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Stop | None = None,
        grows: bool = False,
        progress: Progress | None = None,
        namespace: Namespace | None = None,
    ) -> tuple[Prefill, Iterator[Generated]]:
        """`generate` in two steps: when this returns the first token has been chosen, and what the
        prompt took is known.
        """
        return self._replies(namespace).reply(
            segments,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            progress=progress,
            grows=grows,
        )

    def continue_from(
        self,
        prefill: Prefill,
        *,
        max_tokens: int = 256,
        sampling: Sampling = GREEDY,
        stop: Stop | None = None,
    ) -> Iterator[Generated]:
        """New tokens after a prompt that has been read; `prefill` itself stays as it is."""
        return self._replies().go_on(prefill, max_tokens=max_tokens, sampling=sampling, stop=stop)

    def continuation(self, *, max_tokens: int, sampling: Sampling, stop: Stop) -> Continuation:
        """What chooses the tokens of one text, for those who compute many side by side.

        Raises:
            TokenizerError: a stop text, and no tokenizer.
        """
        tokenizer = self.tokenizer if stop.texts else self._tokenizer
        return Continuation(tokenizer, max_tokens, sampling, stop)

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
        asked = Questions(document, self._replies(), self.tokenizer, progress)
        for question in questions:
            yield asked.answer(question, max_tokens)

    def explain(
        self, segments: Sequence[Tokens], *, namespace: Namespace | None = None
    ) -> tuple[Verdict, ...]:
        """For each boundary of a prompt whether its state is stored and, where not, why. The
        deepest fork that is stored between boundaries is told, too.
        """
        if self.store is None:
            return ()
        self.flush()
        session = self._session.within(namespace)
        along = stored_along(self.store, session.plan(segments), session.namespace)
        return explain(self.store, session.identity, along)

    def warm_up(self) -> None:
        """Pay now what the first call of a process costs (thread pools, libraries); results are
        thrown away.
        """
        tokens = torch.zeros(self.engine.rule.min_chunk, dtype=torch.int64, device="cpu")
        with torch.inference_mode():
            output, state = self.engine.prefill(tokens, self.engine.initial_state())
            self.engine.logits(output)
            self.engine.decode(0, state)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return once every state handed to the store so far is written, or dropped; ``False``:
        `timeout_s` passed.
        """
        return self._writer.flush(timeout_s)

    def close(self) -> None:
        """Flush and end the writer; a second call does nothing. Store and engine stay open.

        Later requests are answered all the same, and store nothing.
        """
        self._writer.close()
        self._session.forks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _read(
        self,
        segments: Sequence[Tokens],
        progress: Progress | None,
        namespace: Namespace | None,
        named_segments: int = 0,
    ) -> Prefill:
        session = self._session.within(namespace)
        result, later = session.read(segments, progress, named_segments=named_segments)
        self._session.submit(later)
        return result

    def _replies(self, namespace: Namespace | None = None) -> Replies:
        return Replies(self._session.within(namespace), self._tokenizer)
