"""State-tuned files: where a model begins to read, in the orientation of its version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rwkv_runtime import Runtime
from rwkv_runtime.engines import load_engine
from rwkv_runtime.engines.adapter import load_package_engine
from rwkv_runtime.engines.package import load_model
from rwkv_runtime.errors import WeightsError
from rwkv_runtime.testing import write_random_weights
from statestore import open_store
from statestore.keys import ChunkRule
from tests.runtime.weights.old_versions import HEADS, LAYERS, WIDTH, write_old_weights, write_tuned

SIZE = WIDTH // HEADS
TOKENS = torch.arange(3, 40)
RULE = ChunkRule(chunk=32, min_chunk=8)


@pytest.fixture
def seven(tmp_path: Path) -> Path:
    write_random_weights(tmp_path / "seven.pth")
    return tmp_path / "seven.pth"


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    write_tuned(tmp_path / "tuned.pth")
    return tmp_path / "tuned.pth"


def test_version_7_takes_the_matrices_as_they_are(seven: Path, tuned: Path) -> None:
    matrices = torch.load(tuned, weights_only=True)
    engine = load_engine(seven, threads=1, initial=tuned, cache_dir=seven.parent)
    for layer, state in enumerate(engine.initial_state()):
        assert torch.equal(state.att_kv[0], matrices[f"blocks.{layer}.att.time_state"])
    # the package's own model, begun from the same matrices by hand
    plain = load_model(str(seven.with_suffix("")), "cpu fp32", "7")
    start = plain.generate_zero_state()
    start[1::3] = [matrices[f"blocks.{layer}.att.time_state"].clone() for layer in range(LAYERS)]
    expected, _ = plain.forward(TOKENS.tolist(), start)
    output, _ = engine.prefill(TOKENS, engine.initial_state())
    torch.testing.assert_close(engine.logits(output), expected.float(), rtol=1e-4, atol=1e-4)
    through = load_package_engine(seven, threads=1, initial=tuned, cache_dir=seven.parent)
    again, _ = through.prefill(TOKENS, through.initial_state())
    assert torch.equal(again, expected.float())


@pytest.mark.parametrize("version", ["5", "5.1", "5.2", "6"])
def test_older_versions_turn_them_over(version: str, tmp_path: Path, tuned: Path) -> None:
    """A file beside the weights does what the same matrices within the weights do."""
    write_old_weights(tmp_path / "plain.pth", version)
    content = torch.load(tmp_path / "plain.pth", weights_only=True)
    torch.save(content | torch.load(tuned, weights_only=True), tmp_path / "within.pth")
    plain = load_model(str(tmp_path / "within"), "cpu fp32", version)
    expected, _ = plain.forward(TOKENS.tolist(), None)
    engine = load_package_engine(
        tmp_path / "plain.pth", threads=1, initial=tuned, cache_dir=tmp_path
    )
    output, _ = engine.prefill(TOKENS, engine.initial_state())
    assert torch.equal(output, expected.float())


def test_weights_of_version_7_begin_with_what_they_bring_along(seven: Path, tuned: Path) -> None:
    content = torch.load(seven, weights_only=True) | torch.load(tuned, weights_only=True)
    torch.save(content, seven.with_name("within.pth"))
    beside = load_package_engine(seven, threads=1, initial=tuned, cache_dir=seven.parent)
    within = load_package_engine(seven.with_name("within.pth"), threads=1, cache_dir=seven.parent)
    expected, _ = beside.prefill(TOKENS, beside.initial_state())
    output, _ = within.prefill(TOKENS, within.initial_state())
    assert torch.equal(output, expected)


def test_states_that_began_elsewhere_are_never_mixed(seven: Path, tmp_path: Path) -> None:
    write_tuned(tmp_path / "a.pth", seed=1)
    write_tuned(tmp_path / "b.pth", seed=2)
    document = [[(7 * i * i) % 256 for i in range(300)]]
    cached = []
    with open_store((tmp_path / "store").as_uri()) as store:
        for initial in (None, tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "a.pth"):
            engine = load_engine(seven, threads=1, rule=RULE, initial=initial, cache_dir=tmp_path)
            with Runtime(engine, store) as runtime:
                read = runtime.prefill(document)
            with Runtime(engine, None) as runtime:
                fresh = runtime.prefill(document)
            assert torch.equal(read.logits, fresh.logits)
            cached.append(read.cached_tokens)
    assert cached == [0, 0, 0, 300]


@pytest.mark.parametrize(
    ("layers", "size", "what"),
    [(1, SIZE, "blocks.1.att.time_state is missing"), (3, SIZE, "more layers"), (2, 32, "shape")],
)
def test_a_file_of_another_model_is_refused(
    seven: Path, tmp_path: Path, layers: int, size: int, what: str
) -> None:
    write_tuned(tmp_path / "other.pth", layers=layers, size=size)
    with pytest.raises(WeightsError, match=what):
        load_engine(seven, initial=tmp_path / "other.pth", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("blocks.7.att.time_state", torch.zeros(HEADS, SIZE, SIZE), "more layers"),
        ("blocks.1.att.time_state", torch.zeros(HEADS, SIZE, SIZE).int(), "torch.int32"),
        ("blocks.1.att.time_state", torch.full((HEADS, SIZE, SIZE), float("nan")), "NaN"),
    ],
)
def test_matrices_that_nothing_begins_with_are_refused(
    seven: Path, tuned: Path, name: str, value: torch.Tensor, what: str
) -> None:
    torch.save(torch.load(tuned) | {name: value}, tuned)
    with pytest.raises(WeightsError, match=what):
        load_engine(seven, initial=tuned, cache_dir=tuned.parent)


@pytest.mark.parametrize("version", ["4", "5", "6"])
@pytest.mark.parametrize(
    ("matrices", "what"),
    [
        ({0: (HEADS, SIZE, SIZE)}, "blocks.1.att.time_state is missing"),
        ({0: (HEADS, SIZE, SIZE), 1: (SIZE,)}, r"time_state has shape \[64\]"),
    ],
)
def test_weights_that_bring_too_little_along_are_refused(
    tmp_path: Path, version: str, matrices: dict[int, tuple[int, ...]], what: str
) -> None:
    path = tmp_path / "within.pth"
    write_old_weights(path, version)
    brought = {f"blocks.{i}.att.time_state": torch.zeros(shape) for i, shape in matrices.items()}
    torch.save(torch.load(path) | brought, path)
    with pytest.raises(WeightsError, match="no matrices" if version == "4" else what):
        load_package_engine(path, cache_dir=tmp_path)


def test_version_4_has_no_matrices(tmp_path: Path, tuned: Path) -> None:
    write_old_weights(tmp_path / "four.pth", "4")
    with pytest.raises(WeightsError, match="no matrices"):
        load_package_engine(tmp_path / "four.pth", initial=tuned, cache_dir=tmp_path)
