"""States to put into stores under test: small ones of no model, and ones of RWKV-7's shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from statestore import ChunkRule, Identity, PutOutcome, Role, StateStore, plan
from statestore.schema import DType, State, Tensor, rwkv7
from tests.places.backend_places import a_key, digest

OURS = Identity(digest("model"))

SCHEMA = rwkv7(layers=2, width=64, heads=1, head_size=64)
IDENTITY = Identity(bytes(range(32)))


def a_state(number: int) -> State:
    values = np.random.default_rng(number).standard_normal(64).astype("<f4")
    return State("any", (Tensor.of("t", DType.F32, [64], values),))


def put(store: StateStore, number: int, **fields: Any) -> PutOutcome:
    """Keep `a_state` under `a_key` of this number, as `OURS`."""
    known: dict[str, Any] = {"token_digest": digest("tokens"), "role": Role.SEGMENT, **fields}
    return store.put(OURS, a_key(number), a_state(number), **known)


def make_state(seed: int) -> State:
    """A state of `SCHEMA`."""
    source = np.random.default_rng(seed)
    return State(
        SCHEMA.id,
        tuple(
            Tensor.of(s.name, s.dtype, s.shape, source.standard_normal(s.shape).astype("<f4"))
            for s in SCHEMA.tensors
        ),
    )


def fill(store: StateStore, count: int) -> None:
    """Keep so many states of `SCHEMA`, each at the end of a prompt of 40 tokens, as `IDENTITY`."""
    for number in range(count):
        prompt = plan([[number] * 40], IDENTITY.fingerprint, ChunkRule())
        boundary = prompt.boundaries[-1]
        store.put(
            IDENTITY,
            boundary.key,
            make_state(number),
            token_digest=boundary.token_digest,
            role=boundary.role,
            model="random.pth" if number % 2 else "",
        )
