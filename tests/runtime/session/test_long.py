"""A very long prompt: memory does not grow with it, and it goes on from any of its stops bit for
bit. 100,000 tokens, or as many as TEST_LONG says; a million take some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.engines import Engine
from rwkv_runtime.testing import small_architecture, write_random_weights
from statestore import StateStore, open_store
from statestore.keys import KeyedBoundary, Plan
from statestore.store import Identity
from tests.checkout import ROOT
from tests.runtime.workers.long_reader import digests, prompt

TOKENS = int(os.environ.get("TEST_LONG", "100000"))
MEGABYTES_32 = 32 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    write_random_weights(path, small_architecture(layers=2, width=32, heads=2), seed=4)
    return path


def test_a_long_prompt_in_constant_memory_goes_on_from_any_stop(
    model: Path, tmp_path: Path
) -> None:
    url = (tmp_path / "states").as_uri()
    read = read_elsewhere(model, url)
    assert read["computed"] == TOKENS
    assert read["grown"] < MEGABYTES_32

    engine = load_engine(model, threads=1)
    with open_store(url) as store:
        whole = Runtime(engine, store).session.plan([prompt(TOKENS)])
        identity = Identity(engine.fingerprint.digest, "default")
        # From each stop to the next: so from any of them to the end.
        stops = [None, *whole.boundaries]
        assert len(stops) > TOKENS / 5_000
        for stop, next_stop in pairwise(stops):
            assert next_stop is not None
            expected = stored(store, identity, next_stop)
            assert computed(engine, store, identity, whole, stop, next_stop) == expected

        # And once as a request does it.
        middle = whole.boundaries[len(whole.boundaries) // 2].position
        for boundary in whole.boundaries:
            if boundary.position > middle:
                assert store.delete(boundary.key)
        with Runtime(engine, store) as runtime:
            resumed = runtime.prefill([prompt(TOKENS)])
    assert resumed.cached_tokens == middle
    assert digests(engine, resumed) == read["digests"]


def read_elsewhere(model: Path, url: str) -> dict[str, object]:
    command = [
        sys.executable,
        "-m",
        "tests.runtime.workers.long_reader",
        str(model),
        url,
        str(TOKENS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    print(done.stdout)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def stored(store: StateStore, identity: Identity, stop: KeyedBoundary) -> list[bytes]:
    found = store.find(identity, [stop.key])
    assert found is not None, f"nothing is stored at {stop.position}"
    return [bytes(part.data) for part in found.state.parts]


def computed(
    engine: Engine,
    store: StateStore,
    identity: Identity,
    whole: Plan,
    stop: KeyedBoundary | None,
    next_stop: KeyedBoundary,
) -> list[bytes]:
    """The state at `next_stop`, from the stored one at `stop`."""
    state, position, output = engine.initial_state(), 0, None
    if stop is not None:
        found = store.find(identity, [stop.key])
        assert found is not None
        (state, output), position = engine.from_stored(found.state), stop.position
    tokens = torch.frombuffer(bytearray(whole.tokens), dtype=torch.int32)
    for end in (end for end in whole.ends if position < end <= next_stop.position):
        with torch.inference_mode():
            output, state = engine.prefill(tokens[position:end].long(), state)
        position = end
    return [bytes(part.data) for part in engine.to_stored(state, output).parts]
