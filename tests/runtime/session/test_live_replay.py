"""The live store does what the simulator says: the runtime's own rules, over a real store with its
budget, on the clock of a trace.

Each block of a trace is a chunk of tokens that are all the block's id, so a prompt's chunk ends are
its blocks' and the simulator sees the very same keys.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from rwkv_runtime.session.admission import Admission
from rwkv_runtime.session.checkpoints import to_save
from rwkv_runtime.session.forks import Forks
from rwkv_runtime.session.pace import Costs
from statestore import ChunkRule, Identity, Namespace, StateStore, open_store
from statestore.eviction import make_policy
from statestore.keys import Plan, Role, plan
from statestore.schema import DType, State, Tensor
from statestore.simulate import Request, make_admission, read_trace, replay
from statestore.simulate.replay import BEGAN

BLOCK = 512  # tokens
RULE = ChunkRule(chunk=BLOCK, min_chunk=BLOCK, stride=1 << 20)  # without stops
KEEPS = Admission()
COSTS = Costs(token_s=1.0, fetch_s=0.0)
IDENTITY = Identity(bytes(32))
# So large that what thousands of containers differ by comes to less than half of one.
STATE = State("rwkv-test/1", (Tensor.of("a", DType.F32, [4096], np.zeros(4096, "<f4")),))


@dataclass(frozen=True)
class Asked:
    """A prompt: when, and its blocks' ids, each of which stands for the whole prefix."""

    time_s: float
    blocks: tuple[int, ...]

    def plan(self) -> Plan:
        tokens = np.repeat(np.array(self.blocks, "<u4"), BLOCK)
        return plan([tokens], IDENTITY.fingerprint, RULE)


class Live:
    """What a session does to a store for each prompt, but for the computing."""

    def __init__(self, url: str) -> None:
        self.now = BEGAN
        self.hits = 0
        self.backend = open_store(url).backend
        self.store = StateStore(self.backend, codec_name="raw", clock=lambda: self.now)
        self.forks = Forks(self.store, KEEPS)

    def read(self, prompt: Plan) -> None:
        found = self.store.find(IDENTITY, prompt.keys_deepest_first, touch=False)
        start = 0 if found is None else found.entry.key.n_tokens
        look = self.forks.look(prompt, start, Namespace())
        if found is not None:
            self.hits += start
            self.store.touch(found.entry)
        self.forks.note(look)
        lasting = start
        for boundary in to_save(prompt, start, start, KEEPS, COSTS, fork=look.sight.fork):
            self.store.put(
                IDENTITY,
                boundary.key,
                STATE,
                token_digest=boundary.token_digest,
                role=boundary.role,
                ancestor_tokens=lasting,
            )
            lasting = boundary.position


def blob_bytes() -> int:
    """Of one container; they differ by a few bytes."""
    probe = Live("memory:")
    with closing(probe.backend):
        probe.read(Asked(0.0, tuple(range(200))).plan())
        return probe.backend.usage().blob_bytes


def shares(asked: Sequence[Asked], budget_states: int | None) -> tuple[float, float]:
    """Tokens found, of all: live, and by the simulator."""
    # half a state more: containers differ by a few bytes
    budget = "100GiB" if budget_states is None else str(int((budget_states + 0.5) * blob_bytes()))
    live = Live(f"memory:?budget={budget}")
    requests: list[Request] = []
    with closing(live.backend):
        for one in asked:
            prompt = one.plan()
            live.now = BEGAN + one.time_s - asked[0].time_s
            live.read(prompt)
            requests.append(Request(one.time_s, prompt.n_tokens, prompt.keys))
        entries = live.backend.usage().entries
    simulated = replay(requests, make_policy(), make_admission("end+fork"), budget_states)
    assert entries == simulated.states_kept
    share = live.hits / simulated.total.input_tokens
    print(f"live {share:.2%}, simulated {simulated.hit_token_share:.2%}")
    return share, simulated.hit_token_share


def made_up(requests: int) -> list[Asked]:
    """Conversations under a few system prompts, documents that some ask about, and scans."""
    dice, numbers = random.Random(7), count(1)

    def fresh(blocks: int) -> tuple[int, ...]:
        return tuple(next(numbers) for _ in range(blocks))

    systems = [fresh(4) for _ in range(5)]
    documents = [fresh(dice.randrange(10, 60)) for _ in range(300)]
    talks: list[tuple[int, ...]] = []
    asked: list[Asked] = []
    for number in range(requests):
        kind = dice.random()
        if kind < 0.5 and talks:
            place = len(talks) - 1 - int(min(dice.expovariate(1 / 12), len(talks) - 1))
            blocks = talks[place] = talks[place] + fresh(dice.randrange(1, 4))
        elif kind < 0.65:
            blocks = dice.choice(systems) + fresh(dice.randrange(1, 12))
            talks.append(blocks)
        elif kind < 0.9:
            blocks = documents[int(min(dice.paretovariate(0.7), 300)) - 1] + fresh(2)
        else:
            blocks = fresh(dice.randrange(5, 40))
        asked.append(Asked(number * 1.5, blocks))
    return asked


@pytest.mark.parametrize("budget", [None, 60, 400])
def test_a_made_up_trace(budget: int | None) -> None:
    live, simulated = shares(made_up(2000), budget)
    assert simulated > 0.05
    assert live == pytest.approx(simulated, abs=0.002)


def test_the_live_store_keeps_forks() -> None:
    """So that what is compared is worth comparing."""
    live = Live("memory:")
    with closing(live.backend):
        for number in range(3):
            live.read(Asked(0.0, (1, 2, 3, 4, 10 + number, 20 + number)).plan())
        roles = {entry.key.n_tokens: entry.role for entry in live.store.list()}
    assert roles == {4 * BLOCK: Role.FORK, 6 * BLOCK: Role.PROMPT}
    assert live.hits == 4 * BLOCK


@pytest.fixture(scope="module")
def production(data_dir: Path) -> list[Asked]:
    path = data_dir / "mooncake" / "conversation_trace.jsonl"
    if not path.exists():
        pytest.skip(f"not run: no data at {path}")
    numbers: dict[bytes, int] = {}
    return [
        Asked(r.time_s, tuple(numbers.setdefault(key.digest, len(numbers)) for key in r.keys))
        for r in read_trace(path)
        if r.keys
    ]


@pytest.mark.parametrize("budget", [200, 1000])
def test_a_production_trace(production: list[Asked], budget: int) -> None:
    live, simulated = shares(production, budget)
    assert live == pytest.approx(simulated, abs=0.005)
