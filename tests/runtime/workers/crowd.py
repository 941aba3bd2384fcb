"""Many real processes that ask one store at once, forked from one that has loaded everything.

Each counts the tokens that it computes where its parent sees them, also after it was killed. One
that has computed half of the document says so and waits: so it can be killed just there. Before
that it has written what it handed over: what a slow disk loses is not what is counted here.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.engines import Engine
from statestore import ChunkRule, StateStore, open_store

RULE = ChunkRule(chunk=64, min_chunk=4, stride=1)
STOP = RULE.chunk * RULE.stride  # tokens between two stops
DOCUMENT = [1 + i * i % 251 for i in range(3072)]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.runtime.workers.crowd"])
WAIT_S = 240.0


class Counting:
    """An engine that notes what it computes, and stops to say when it is half-way."""

    flush: Callable[[], object]

    def __init__(self, inner: Engine, computed: Any, pipe: Connection) -> None:
        self._inner = inner
        self._computed = computed
        self._pipe = pipe

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def prefill(self, tokens: Any, state: Any) -> Any:
        done = self._inner.prefill(tokens, state)
        before = self._computed.value
        self._computed.value += len(tokens)
        if before < len(DOCUMENT) // 2 <= self._computed.value:
            self.flush()
            self._pipe.send("half")
            self._pipe.recv()
        return done


def document(number: int) -> list[int]:
    """Different ones from their first token on."""
    return [number, *DOCUMENT[1:]]


def question(number: int) -> list[int]:
    """Each asks something else."""
    return [200, number, 3, 201, number, 7]


def ask(
    model: Path, url: str, number: int, skew_s: float, lease_s: float, computed: Any, pipe: Any
) -> None:
    """What a process does: load, say so, then for each document that it is told ask once and tell
    the answer's digest.
    """
    engine = load_engine(model, threads=1, rule=RULE)
    counting: Any = Counting(engine, computed, pipe)
    with open_store(url) as opened:
        store = StateStore(opened.backend, codec_name="raw", clock=lambda: time.time() + skew_s)
        with Runtime(counting, store) as runtime:
            runtime.warm_up()
        pipe.send("ready")
        while (told := pipe.recv()) is not None:
            computed.value = 0
            with Runtime(counting, store, lease_s=lease_s) as runtime:  # nothing measured yet
                counting.flush = runtime.flush
                result = runtime.prefill([document(told), question(number)])
                pipe.send(hashlib.sha256(result.logits.numpy().tobytes()).hexdigest())


class Member:
    """One of the processes."""

    def __init__(
        self, model: Path, url: str, number: int, skew_s: float = 0.0, lease_s: float = 10.0
    ) -> None:
        self.number = number
        self._computed = CONTEXT.Value("q", 0, lock=False)
        self.pipe, other = CONTEXT.Pipe()
        self.process = CONTEXT.Process(
            target=ask, args=(model, url, number, skew_s, lease_s, self._computed, other)
        )
        self.process.start()
        other.close()

    @property
    def computed(self) -> int:
        """Tokens."""
        return int(self._computed.value)

    def hear(self) -> str:
        """What it says next."""
        assert self.pipe.poll(WAIT_S), f"process {self.number} is silent"
        said: str = self.pipe.recv()
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@contextmanager
def crowd(model: Path, url: str, size: int, **options: Any) -> Iterator[list[Member]]:
    """Processes that are ready; every second one has a clock that is an hour off."""
    skewed = options.pop("skewed", False)
    members: list[Member] = []
    try:
        for number in range(size):
            skew_s = (-3600.0, 3600.0)[number % 2] if skewed else 0.0
            members.append(Member(model, url, number, skew_s, **options))
        assert {member.hear() for member in members} == {"ready"}
        yield members
    finally:
        for member in members:
            member.kill()
            member.pipe.close()


def go(members: list[Member], number: int) -> None:
    """Have them all ask about this document."""
    for member in members:
        member.pipe.send(number)


def half_way(members: list[Member]) -> Member:
    """The first to have computed half of the document; it waits."""
    heard = wait([member.pipe for member in members], WAIT_S)
    assert heard, "nobody computes"
    member = next(member for member in members if member.pipe in heard)
    assert member.hear() == "half"
    return member


def answers(members: list[Member]) -> dict[int, str]:
    """Let them all go on to the end; the answers' digests by number."""
    found: dict[int, str] = {}
    while len(found) < len(members):
        left = {member.pipe: member for member in members if member.number not in found}
        heard = wait(list(left), WAIT_S)
        assert heard, f"no answer from {[member.number for member in left.values()]}"
        for pipe in heard:
            said = left[pipe].hear()  # type: ignore[index]
            if said == "half":
                left[pipe].pipe.send("go on")  # type: ignore[index]
            else:
                found[left[pipe].number] = said  # type: ignore[index]
    return found
