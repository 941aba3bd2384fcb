"""The engine's bits, watched: whoever changes them raises `NUMERICS_REVISION`, so that old states
are not used.

Bits differ between processors and releases of torch. So tests/golden/rwkv7_numerics.json holds
values, which every machine must come close to, and digests of the bits, which a machine must meet
whose kind is recorded there. To record this machine's, or a new revision: python
tests/runtime/engines/test_numerics.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from rwkv_runtime.engines import NUMERICS_REVISION, Rwkv7Engine, load_engine
from rwkv_runtime.names import DTypeName
from rwkv_runtime.testing import small_architecture, write_random_weights
from statestore.schema import State
from tests.checkout import GOLDEN

NUMERICS = GOLDEN / "rwkv7_numerics.json"
DTYPES: tuple[DTypeName, ...] = ("fp32", "bf16", "fp16")
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2, "fp16": 5e-3}  # relative to the largest value
CHUNKS = (100, 32, 7, 1)


def machine() -> str:
    """What bits may depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {capability}, {processor}"


def computed(dtype: DTypeName, scratch: Path) -> tuple[list[float], State]:
    """The logits and the state after a few chunks and one decoded token."""
    engine = engine_of(dtype, scratch)
    state, tokens = engine.initial_state(), torch.arange(sum(CHUNKS)) * 7 % engine.vocabulary
    for chunk in tokens.split(CHUNKS):
        output, state = engine.prefill(chunk, state)
    output, state = engine.decode(5, state)
    return engine.logits(output).tolist(), engine.to_stored(state, output)


def engine_of(dtype: DTypeName, scratch: Path) -> Rwkv7Engine:
    path = scratch / "golden.safetensors"
    # Wide enough for packed matrices, see `rwkv_runtime.projection`.
    architecture = small_architecture(width=512, heads=8, vocabulary=50)
    write_random_weights(path, architecture, seed=20)
    return load_engine(path, dtype=dtype, threads=1, cache_dir=scratch)


def bits(logits: list[float], state: State) -> str:
    digest = hashlib.sha256(repr(logits).encode())
    for tensor in state.parts:
        digest.update(tensor.data)
    return digest.hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_revision_stands_for_these_numbers(dtype: DTypeName, tmp_path: Path) -> None:
    golden = json.loads(NUMERICS.read_text())
    assert golden["revision"] == NUMERICS_REVISION, "record the new revision"
    logits, state = computed(dtype, tmp_path)
    expected = golden["logits"][dtype]
    worst = max(abs(one - other) for one, other in zip(logits, expected, strict=True))
    assert worst <= TOLERANCE[dtype] * max(map(abs, expected)), "raise NUMERICS_REVISION"
    recorded = golden["bits"].get(machine(), {})
    if recorded:
        assert bits(logits, state) == recorded[dtype], "the bits changed: raise NUMERICS_REVISION"


def record() -> None:
    """Write what this machine computes; another revision drops what other machines recorded."""
    with tempfile.TemporaryDirectory() as scratch:
        results = {dtype: computed(dtype, Path(scratch)) for dtype in DTYPES}
    golden: dict[str, Any] = json.loads(NUMERICS.read_text()) if NUMERICS.exists() else {}
    if golden.get("revision") != NUMERICS_REVISION:
        golden = {"revision": NUMERICS_REVISION, "bits": {}}
        golden["logits"] = {dtype: logits for dtype, (logits, _) in results.items()}
    golden["bits"][machine()] = {dtype: bits(*result) for dtype, result in results.items()}
    NUMERICS.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    record()
