"""The engine against the `rwkv` package in fp32: prefill, resume, decode; logits and every
state tensor.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from rwkv_runtime.engines import KernelName, Rwkv7Engine, load_engine
from rwkv_runtime.testing import small_architecture, write_random_weights
from rwkv_runtime.weights import Architecture
from tests.checkout import ROOT

PEER = ROOT / "tests" / "runtime" / "workers" / "rwkv_peer.py"
BOUND = 1e-5
SHAPES = {
    "2x128, 2 heads": small_architecture(),
    "3x256, 4 heads": small_architecture(layers=3, width=256, heads=4, vocabulary=1000),
    "4x192, 3 heads": small_architecture(layers=4, width=192, heads=3, vocabulary=300),
    "1x64, 1 head": small_architecture(layers=1, width=64, heads=1, vocabulary=77),
}
# Prefill, resume with a short and a long piece, then token by token.
LENGTHS = (100, 7, 300, 1, 1, 1, 1)


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def peers_results(weights: Path, runs: list[list[int]]) -> dict[str, Tensor]:
    target = weights.with_name("peer.safetensors")
    asked = json.dumps({"weights": str(weights.with_suffix("")), "runs": runs})
    command = [sys.executable, "-W", "ignore", str(PEER), str(target)]
    subprocess.run(command, input=asked, text=True, check=True, stdout=subprocess.DEVNULL)
    results: dict[str, Tensor] = safetensors.torch.load_file(target)
    return results


def assert_parity(engine: Rwkv7Engine, runs: list[list[int]], expected: dict[str, Tensor]) -> None:
    state = engine.initial_state()
    for number, run in enumerate(runs):
        if len(run) == 1:
            output, state = engine.decode(run[0], state)
        else:
            output, state = engine.prefill(torch.tensor(run), state)
        logits = engine.logits(output)
        wanted = expected[f"{number}.logits"]
        assert error(logits, wanted) <= BOUND, f"run {number}"
        assert int(logits.argmax()) == int(wanted.argmax()), f"run {number}"
        for layer, of_layer in enumerate(state):
            for part in ("att_x_prev", "att_kv", "ffn_x_prev"):
                name = f"{number}.blocks.{layer}.{part}"
                assert error(getattr(of_layer, part)[0], expected[name]) <= BOUND, name


@pytest.mark.parametrize("kernel", ["torch", "native"])
@pytest.mark.parametrize("architecture", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights(
    tmp_path: Path, architecture: Architecture, seed: int, kernel: KernelName
) -> None:
    path = tmp_path / "random.pth"
    write_random_weights(path, architecture, seed=seed)
    source = np.random.default_rng(seed)
    runs = [source.integers(0, architecture.vocabulary, length).tolist() for length in LENGTHS]
    engine = load_engine(path, threads=1, kernel=kernel, cache_dir=tmp_path)
    assert_parity(engine, runs, peers_results(path, runs))


@pytest.fixture
def trained(data_dir: Path, tmp_path: Path) -> Path:
    """The trained tiny RWKV-7 of rwkv.cpp."""
    path = tmp_path / "trained.pth"
    path.write_bytes((data_dir / "rwkv_cpp" / "tiny-rwkv-7v0-834K.pth").read_bytes())
    return path


@pytest.mark.parametrize("kernel", ["torch", "native"])
def test_trained_weights(trained: Path, tmp_path: Path, kernel: KernelName) -> None:
    text = b"In a hole in the ground there lived a hobbit. " * 6
    runs = [list(text), list(b"Not a nasty, dirty, wet hole"), [44], [32]]
    engine = load_engine(trained, threads=1, kernel=kernel, cache_dir=tmp_path)
    assert_parity(engine, runs, peers_results(trained, runs))


@pytest.mark.parametrize("kernel", ["torch", "native"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_trained_weights_give_the_published_logits(
    data_dir: Path, trained: Path, tmp_path: Path, cut: int, kernel: KernelName
) -> None:
    engine = load_engine(trained, threads=1, kernel=kernel, cache_dir=tmp_path)
    file = data_dir / "rwkv_cpp" / "expected-logits-7v0-834K.f32"
    expected = torch.from_numpy(np.fromfile(file, "<f4"))
    tokens = torch.tensor(list(b'"in'))
    state = engine.initial_state()
    for piece in (tokens[:cut], tokens[cut:]):
        if len(piece):
            output, state = engine.prefill(piece, state)
    logits = engine.logits(output)
    assert (logits - expected).abs().max() <= BOUND * expected.abs().max()
    assert int(logits.argmax()) == int(expected.argmax())
