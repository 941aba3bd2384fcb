"""Packed matrices: the same products, the same bits wherever a run began."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from rwkv_runtime.engines.load import load_engine
from rwkv_runtime.projection import PACKED_ELEMENTS, can_pack, packed, projection
from rwkv_runtime.testing import small_architecture, write_random_weights
from rwkv_runtime.weights import read_weights
from tests.runtime.workers.processes import Profile, Workers

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough for its matrices to be packed."""
    path = tmp_path_factory.mktemp("wide") / "wide.safetensors"
    write_random_weights(path, small_architecture(layers=2, width=512, heads=8, vocabulary=1024))
    return path


@pytest.fixture(scope="module")
def wide_workers(wide_model: Path) -> Iterator[Workers]:
    workers = Workers(wide_model)
    yield workers
    workers.close()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3, 8, 64, 256])
def test_a_packed_product_is_the_plain_one(dtype: torch.dtype, rows: int) -> None:
    weight, x = torch.randn(768, 512).to(dtype), torch.randn(2, rows, 512).to(dtype)
    expected = F.linear(x.double(), weight.double())
    found = projection(packed(weight, 256))(x)
    assert found.shape == (2, rows, 768)
    assert found.dtype == dtype
    assert float((found - expected).abs().max()) < TOLERANCE[dtype] * float(expected.abs().max())


def test_large_matrices_are_packed_and_no_others(wide_model: Path) -> None:
    tensors = read_weights(wide_model, torch.float32, CPU, rows=256).tensors
    names = {name for name, tensor in tensors.items() if tensor.is_mkldnn}
    large = {
        name
        for name, tensor in tensors.items()
        if tensor.dim() == 2 and tensor.numel() >= PACKED_ELEMENTS and name != "emb.weight"
    }
    assert names == (large if can_pack(torch.float32, CPU) else set())


def test_what_cannot_be_packed_stays_as_it_is() -> None:
    for weight in (
        torch.randn(512, 512).double(),
        torch.randn(16, 16),
        torch.randn(512, 512).half(),
    ):
        assert packed(weight, 256) is weight


@pytest.mark.parametrize(
    "profile",
    [
        Profile("fp32", 1),
        Profile("fp32", 2),
        Profile("bf16", 2),
        Profile("fp32", 2, kernel="native"),
        Profile("bf16", 1, kernel="native"),
    ],
)
def test_warm_in_another_process_equals_cold(
    wide_workers: Workers, profile: Profile, tmp_path: Path
) -> None:
    document, question = [[(7 * i) % 1024 for i in range(75)], [5, 9, 2]]
    url = (tmp_path / "store").as_uri()
    wide_workers(profile, 0).prefill([document], url)
    warm = wide_workers(profile, 1).prefill([document, question], url)
    cold = wide_workers(profile, 0).prefill([document, question], None)
    assert (warm["cached"], cold["cached"]) == (len(document), 0)
    for part in ("logits", "state", "output", "greedy"):
        assert warm[part] == cold[part]


def test_a_wide_model_reads_with_packed_weights_what_plain_ones_read(wide_model: Path) -> None:
    """To rounding; and its logits are float32."""
    engine = load_engine(wide_model, dtype="fp32")
    tokens = torch.arange(100)
    output, _ = engine.prefill(tokens, engine.initial_state())
    stepped = engine.initial_state()
    for token in tokens.tolist():
        last, stepped = engine.decode(token, stepped)
    found, expected = engine.logits(output), engine.logits(last)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())
