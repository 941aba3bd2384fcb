"""Tokens found in traffic of several kinds, by policy: a table of `docs/policies.md`.

    python -m benchmarks.traffic --policy gdsf --policy learned --policy oracle
    python -m benchmarks.traffic --trace conversation_trace.jsonl

Without a trace all traffic is made up, the same in every run. With one, it is replayed by halves,
behind documents, and mixed with agents and documents.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import click

from statestore.eviction import POLICIES, make_policy
from statestore.simulate import (
    Request,
    Result,
    make_admission,
    read_trace,
    replay,
    replay_clairvoyant,
)
from statestore.simulate.oracle import NAME as ORACLE
from statestore.simulate.prefixes import KEPT_BYTES, Prefixes

BLOCK: Final = 512
HOUR_S: Final = 3600.0

Traffic: TypeAlias = Callable[[], list[Request]]


def asked(at: float, blocks: Sequence[str], dice: random.Random) -> Request:
    """A prompt of these blocks, and less than one more."""
    chain, digests = hashlib.sha256(), b""
    for block in blocks:
        chain.update(block.encode() + b"|")
        digests += chain.digest()[:KEPT_BYTES]
    ends = array("q", range(BLOCK, BLOCK * (len(blocks) + 1), BLOCK))
    return Request(at, BLOCK * len(blocks) + dice.randrange(1, BLOCK - 1), Prefixes(digests, ends))


def in_order(requests: Sequence[Request]) -> list[Request]:
    """By time, from 0 on."""
    begin = min(request.time_s for request in requests)
    moved = (replace(request, time_s=request.time_s - begin) for request in requests)
    return sorted(moved, key=lambda request: request.time_s)


def chats() -> list[Request]:
    """Up to eight turns behind one of 20 system prompts."""
    dice = random.Random(1)
    lengths = [dice.randrange(1, 12) for _ in range(20)]
    requests: list[Request] = []
    for chat in range(1500):
        which = dice.randrange(20)
        blocks = [f"s{which}.{i}" for i in range(lengths[which])]
        at = dice.uniform(0, HOUR_S)
        for turn in range(dice.choice([1, 1, 2, 3, 5, 8])):
            blocks = blocks + [f"c{chat}.{turn}.{i}" for i in range(dice.randrange(1, 5))]
            requests.append(asked(at, blocks, dice))
            at += dice.lognormvariate(4, 0.9)
    return in_order(requests)


def documents(scanned: float = 0.0, seed: int = 2, count: int = 5000) -> list[Request]:
    """Questions about 500 documents by Zipf's law, and a share that is never asked for again."""
    dice = random.Random(seed)
    lengths = [dice.randrange(4, 60) for _ in range(500)]
    chosen = dice.choices(range(500), [1 / (rank + 1) for rank in range(500)], k=count)
    requests: list[Request] = []
    at = 0.0
    for number, which in enumerate(chosen):
        at += dice.expovariate(1.4)
        if dice.random() < scanned:
            blocks = [f"x{number}.{i}" for i in range(dice.randrange(4, 60))]
        else:
            blocks = [*(f"d{which}.{i}" for i in range(lengths[which])), f"q{number}"]
        requests.append(asked(at, blocks, dice))
    return in_order(requests)


def short_chats() -> list[Request]:
    """Up to four turns of a block each, behind 40 system prompts of unequal popularity."""
    dice = random.Random(3)
    lengths = [dice.randrange(4, 20) for _ in range(40)]
    requests: list[Request] = []
    popular = [1 / (rank + 1) for rank in range(40)]
    for chat, which in enumerate(dice.choices(range(40), popular, k=2500)):
        blocks = [f"s{which}.{i}" for i in range(lengths[which])]
        at = dice.uniform(0, HOUR_S)
        for turn in range(dice.choice([1, 1, 2, 3, 4])):
            blocks = [*blocks, f"c{chat}.{turn}"]
            requests.append(asked(at, blocks, dice))
            at += dice.lognormvariate(3.5, 0.7)
    return in_order(requests)


def agents() -> list[Request]:
    """Up to sixteen quick steps that add little, behind eight long prompts with tools."""
    dice = random.Random(4)
    lengths = [dice.randrange(6, 16) for _ in range(8)]
    requests: list[Request] = []
    for task in range(700):
        which = min(int(dice.expovariate(0.5)), 7)
        blocks = [f"a{which}.{i}" for i in range(lengths[which])]
        at = dice.uniform(0, HOUR_S)
        for step in range(dice.choice([1, 2, 4, 8, 16])):
            added = dice.choice([1, 1, 1, 2, 6])
            blocks = blocks + [f"t{task}.{step}.{i}" for i in range(added)]
            requests.append(asked(at, blocks, dice))
            at += dice.lognormvariate(1.8, 0.8)
    return in_order(requests)


def behind(first: Sequence[Request], then: Sequence[Request]) -> list[Request]:
    """One after the other."""
    later_s = first[-1].time_s + 1.0
    return [*first, *(replace(request, time_s=request.time_s + later_s) for request in then)]


MADE_UP: Final[Mapping[str, tuple[Traffic, tuple[int, ...]]]] = {
    "chats behind 20 system prompts": (chats, (100, 500)),
    "documents by Zipf's law": (documents, (100, 500)),
    "the same, 30 % never again": (partial(documents, 0.3), (100, 500)),
    "short chats behind popular system prompts": (short_chats, (30, 100)),
    "agents that take many small steps": (agents, (30, 100)),
}


def of_trace(path: Path) -> dict[str, tuple[Traffic, tuple[int, ...]]]:
    """What is made of a recorded trace."""
    whole = in_order(read_trace(path))
    half, read = len(whole) // 2, documents(0.3, 9, 3000)
    budgets = (200, 1000)
    return {
        "the first half of the requests": (lambda: whole[:half], budgets),
        "the second half": (lambda: whole[half:], budgets),
        "documents, then the trace": (lambda: behind(read, whole), budgets),
        "the trace, agents and documents at once": (
            lambda: in_order([*whole, *agents(), *documents(0.3, 2, 3000)]),
            budgets,
        ),
    }


def found(requests: Sequence[Request], policy: str, budget: int) -> Result:
    """By the admission of ends and forks."""
    admission = make_admission("end+fork")
    if policy == ORACLE:
        return replay_clairvoyant(requests, admission, budget)
    return replay(requests, make_policy(policy), admission, budget)


@click.command()
@click.option(
    "--policy",
    "policies",
    type=click.Choice([*POLICIES, ORACLE]),
    multiple=True,
    default=["gdsf", "learned", ORACLE],
    show_default=True,
)
@click.option("--trace", type=click.Path(exists=True, path_type=Path), help="Use this one instead.")
def main(policies: tuple[str, ...], trace: Path | None) -> None:
    """Replay each kind of traffic at its budgets."""
    for name, (traffic, budgets) in (MADE_UP if trace is None else of_trace(trace)).items():
        requests = traffic()
        for policy in policies:
            shares = [100 * found(requests, policy, b).hit_token_share for b in budgets]
            cells = " / ".join(f"{share:.2f}" for share in shares)
            click.echo(f"{name}, {' / '.join(map(str, budgets))}: {policy} {cells}")


if __name__ == "__main__":
    main()
