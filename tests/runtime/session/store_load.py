"""Requests from several threads through one runtime, each compared with a run without a store."""

from __future__ import annotations

import functools
import random
import threading
import time
from typing import Self

import torch

from rwkv_runtime import Prefill, Runtime
from rwkv_runtime.engines import Engine
from rwkv_runtime.session.admission import Everything
from statestore import StateStore

THREADS = 4
WAIT_S = 60.0  # for something that is to come; many times what it takes
REQUEST_S = 20.0  # a request that takes longer hangs: driver's time-outs and patience come to 6 s

KNOWN = [[number] * 20 + list(range(12)) for number in range(1, 4)]
QUESTIONS = [[number, 7, 200, 201] for number in range(2)]
FRESH_SHARE = 0.3  # of requests ask about a document that nobody has seen


@functools.cache
def expected(engine: Engine) -> dict[tuple[int, int], Prefill]:
    """What a run without a store makes of each known document and question."""
    bare = Runtime(engine, None)
    return {
        (document, question): bare.prefill([KNOWN[document], QUESTIONS[question]])
        for document in range(len(KNOWN))
        for question in range(len(QUESTIONS))
    }


class Load:
    """Asks without a pause, from `THREADS` threads, until it is left.

    Each answer's logits and state are those of a run without a store, bit for bit; the first
    request that fails, differs or hangs ends the load, and `check` and leaving raise it.
    """

    def __init__(self, engine: Engine, store: StateStore) -> None:
        self.store = store
        self.requests = 0
        self.slowest_s = 0.0
        self._runtime = Runtime(engine, store, admission=Everything())
        self._bare = Runtime(engine, None)
        self._known = expected(engine)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._problem: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(THREADS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "a request hangs"
        self._runtime.close()
        self.store.close()
        print(f"{self.requests} requests, {self.hits} hits, the slowest {self.slowest_s:.2f} s")
        if kind is None:
            self.check()

    @property
    def hits(self) -> int:
        """Lookups that the store answered with a state."""
        return int(self.value("lookups_total", outcome="hit"))

    def check(self) -> None:
        if self._problem is not None:
            raise self._problem

    def wait_for(self, requests: int = 0, hits: int = 0) -> None:
        """Until so many more have been answered, so many of them from the store."""
        with self._lock:
            requests, hits = self.requests + requests, self.hits + hits
        self.wait_until(lambda: self.requests >= requests and self.hits >= hits)

    def wait_until(self, done: object) -> None:
        assert callable(done)
        deadline = time.monotonic() + WAIT_S
        while not done():
            self.check()
            assert time.monotonic() < deadline, (
                f"waited in vain after {self.requests} requests, {self.hits} hits"
            )
            time.sleep(0.01)

    def value(self, name: str, **labels: str) -> float:
        return self.store.metrics.value(name, **labels)

    def _work(self, number: int) -> None:
        choose = random.Random(number)
        try:
            while not self._ended.is_set():
                self._ask(choose)
        except BaseException as error:
            self._problem = self._problem or error

    def _ask(self, choose: random.Random) -> None:
        document, question = choose.randrange(len(KNOWN)), choose.randrange(len(QUESTIONS))
        fresh = choose.random() < FRESH_SHARE
        tokens = [choose.randrange(1, 256) for _ in range(32)] if fresh else KNOWN[document]
        segments = [tokens, QUESTIONS[question]]
        began = time.monotonic()
        answer = self._runtime.prefill(segments)
        taken_s = time.monotonic() - began
        right = self._bare.prefill(segments) if fresh else self._known[document, question]
        assert self._same(answer, right), "a wrong bit"
        assert taken_s < REQUEST_S
        with self._lock:
            self.requests += 1
            self.slowest_s = max(self.slowest_s, taken_s)

    def _same(self, one: Prefill, other: Prefill) -> bool:
        engine = self._bare.engine
        states = [
            [bytes(tensor.data) for tensor in engine.to_stored(each.state, each.output).tensors]
            for each in (one, other)
        ]
        return torch.equal(one.logits, other.logits) and states[0] == states[1]
