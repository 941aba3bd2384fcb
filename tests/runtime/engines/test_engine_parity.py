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
SEEDS = (0, 1)
# Prefill, resume with a short and a long piece, then token by token.
LENGTHS = (100, 7, 300, 1, 1, 1, 1)


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def ask_peer(weights: dict[Path, list[list[int]]]) -> None:
    """Have the runs with each file of weights written down by a process of the package's; see
    `peers_results`. To load the package is what takes long.
    """
    asked = [
        json.dumps({"weights": str(path.with_suffix("")), "runs": runs, "target": str(said(path))})
        for path, runs in weights.items()
    ]
    command = [sys.executable, "-W", "ignore", str(PEER)]
    subprocess.run(
        command, input="\n".join(asked), text=True, check=True, stdout=subprocess.DEVNULL
    )


def said(weights: Path) -> Path:
    return weights.with_suffix(".peer.safetensors")


def peers_results(weights: Path) -> dict[str, Tensor]:
    results: dict[str, Tensor] = safetensors.torch.load_file(said(weights))
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


def runs_of(architecture: Architecture, seed: int) -> list[list[int]]:
    source = np.random.default_rng(seed)
    return [source.integers(0, architecture.vocabulary, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """By shape and seed, and what the package makes of them beside each."""
    directory = tmp_path_factory.mktemp("random")
    files, asked = {}, {}
    for number, (shape, architecture) in enumerate(SHAPES.items()):
        for seed in SEEDS:
            path = files[shape, seed] = directory / f"{number}-{seed}.pth"
            write_random_weights(path, architecture, seed=seed)
            asked[path] = runs_of(architecture, seed)
    ask_peer(asked)
    return files


@pytest.mark.parametrize("kernel", ["torch", "native"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_weights(
    random_weights: dict[tuple[str, int], Path], shape: str, seed: int, kernel: KernelName
) -> None:
    path = random_weights[shape, seed]
    engine = load_engine(path, threads=1, kernel=kernel, cache_dir=path.parent)
    assert_parity(engine, runs_of(SHAPES[shape], seed), peers_results(path))


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
    ask_peer({trained: runs})
    assert_parity(engine, runs, peers_results(trained))


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
