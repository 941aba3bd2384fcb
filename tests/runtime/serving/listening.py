"""Whoever listens to a stream, and what the stream would say if nobody were beside it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence

import torch

from rwkv_runtime.engines import Engine, LossyEngine, Rwkv7Engine
from rwkv_runtime.engines.batch import Batch
from rwkv_runtime.generation import Continuation
from rwkv_runtime.runtime import Runtime
from rwkv_runtime.sampling import Sampling
from rwkv_runtime.serving import Ended, Event, Failed, Piece, Request, Started, Streams, Ticket
from rwkv_runtime.serving.events import OnEvent
from rwkv_runtime.session.admission import Everything
from statestore import ChunkRule, StateStore

HANG_S = 120.0  # many times what anything here takes
ENDLESS = 1 << 30

WIDTH = 8
RULE = ChunkRule(chunk=16, min_chunk=4, stride=2)
LONG = [(11 * i * i + 3 * i) % 256 for i in range(60 * 16)]
PROMPTS = [[(31 * i * s + s) % 256 for i in range(5 + 9 * s)] for s in range(1, 7)]
SAMPLINGS = [
    Sampling(),
    Sampling(presence_penalty=0.5, frequency_penalty=0.25),
    Sampling(temperature=1.0, seed=1),
    Sampling(temperature=0.8, top_p=0.7, top_k=50, seed=2, frequency_penalty=0.3),
]


class Listener:
    """Keeps what it is told. `then` is called with it after each event, in the same thread."""

    def __init__(self, then: Callable[[Listener], object] | None = None) -> None:
        self.events: list[Event] = []
        self.ticket: Ticket | None = None
        self._then = then
        self._heard = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._heard:
            self.events.append(event)
            self._heard.notify_all()
        if self._then is not None:
            self._then(self)

    @property
    def tokens(self) -> list[int]:
        return [event.token for event in self.events if isinstance(event, Piece)]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Piece))

    @property
    def started(self) -> Started:
        return next(event for event in self.events if isinstance(event, Started))

    @property
    def last(self) -> Ended | Failed | None:
        ended = [event for event in self.events if isinstance(event, Ended | Failed)]
        assert len(ended) <= 1, "two last events"
        assert not ended or ended[0] is self.events[-1], "something came after the last event"
        return ended[0] if ended else None

    def wait_for(self, number: int) -> None:
        """Until so many tokens, or the end, have come."""
        self._wait(lambda: len(self.tokens) >= number or self.last is not None)

    def end(self) -> Ended | Failed:
        self._wait(lambda: self.last is not None)
        assert self.last is not None
        return self.last

    def ended(self) -> Ended:
        last = self.end()
        assert isinstance(last, Ended), last
        return last

    def _wait(self, there: Callable[[], bool]) -> None:
        with self._heard:
            assert self._heard.wait_for(there, HANG_S), f"waited in vain after {self.events[-3:]}"


def submit(
    streams: Streams, request: Request, then: Callable[[Listener], object] | None = None
) -> Listener:
    listener = Listener(then)
    on_event: OnEvent = listener
    listener.ticket = streams.submit(request, on_event)
    return listener


def alone(engine: Engine, request: Request, width: int) -> list[int]:
    """The tokens of a stream that has a batch for itself, or of one decoded by itself."""
    runtime = Runtime(engine, None)
    prefill = runtime.prefill(request.segments)
    text = Continuation(None, request.max_tokens, request.sampling, request.stop)
    inner = engine.inner if isinstance(engine, LossyEngine) else engine
    tokens = []
    if isinstance(inner, Rwkv7Engine):
        batch = Batch(inner, width)
        place = batch.join(prefill.state if inner is engine else prefill.state.engine)
    logits, state = prefill.logits, prefill.state
    while text.ended is None:
        new = text.take(text.choose(logits))
        if new is not None:
            tokens.append(new.token)
        if isinstance(inner, Rwkv7Engine):
            logits = batch.step({place: text.token})[place]
        else:
            with torch.inference_mode():
                output, state = engine.decode(text.token, state)
                logits = engine.logits(output)
    return tokens


def all_ended(listeners: Sequence[Listener]) -> list[Ended]:
    return [listener.ended() for listener in listeners]


@functools.cache
def by_itself(engine: Engine, prompt: int, sampling: int, tokens: int) -> list[int]:
    """`alone`, of a prompt and a sampling named by number."""
    request = Request([PROMPTS[prompt]], max_tokens=tokens, sampling=SAMPLINGS[sampling])
    return alone(engine, request, WIDTH)


_opened: list[Runtime] = []


def serving(engine: Engine, store: StateStore | None, **options: int) -> Streams:
    """Streams that store the state at every boundary, worth it or not."""
    _opened.append(Runtime(engine, store, admission=Everything()))
    return Streams(_opened[-1], width=WIDTH, **options)


def close_runtimes() -> None:
    """Those behind `serving`; before their stores."""
    while _opened:
        _opened.pop().close()


def wait_until(streams: Streams, **wanted: int) -> None:
    """Until the load says so. It is looked at: nothing tells of what a reader waits for."""
    for _ in range(int(HANG_S * 100)):
        load = streams.load()
        if all(getattr(load, name) == value for name, value in wanted.items()):
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"waited in vain for {wanted}: {streams.load()}")
