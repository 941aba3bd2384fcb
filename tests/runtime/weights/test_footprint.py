"""Loading takes little more memory than the model: what a real process says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch

from rwkv_runtime.errors import WeightsError
from rwkv_runtime.testing import small_architecture, write_random_weights
from rwkv_runtime.weights import read_weights
from rwkv_runtime.weights.tensors import open_tensors
from tests.checkout import ROOT

LARGE = small_architecture(layers=6, width=512, heads=8, vocabulary=16384)
ELSE = 32 << 20  # thread pools, kernels, what the file's header takes
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Written = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    directory = tmp_path_factory.mktemp("large")

    def write(name: str, dtype: str) -> Path:
        write_random_weights(directory / name, LARGE, dtype=DTYPES[dtype])
        return directory / name

    return write


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="not run: this system has no Linux's /proc"
)
@pytest.mark.parametrize(
    ("name", "stored", "dtype", "kernel"),
    [
        ("a.pth", "fp32", "fp32", "torch"),
        ("b.pth", "fp32", "bf16", "torch"),
        ("c.safetensors", "bf16", "fp32", "torch"),
        ("d.pth", "bf16", "bf16", "native"),
        ("e.safetensors", "bf16", "fp32", "native"),
    ],
)
def test_loading_takes_less_than_a_third_more_than_the_model(
    written: Written,
    name: str,
    stored: str,
    dtype: str,
    kernel: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = written(name, stored)
    command = [sys.executable, "-m", "tests.runtime.workers.footprint", str(path), dtype, kernel]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    took = json.loads(done.stdout)
    model = sum(prod(shape) for shape in LARGE.shapes().values()) * DTYPES[dtype].itemsize
    assert model < took["peak"] < 1.3 * model + ELSE


@pytest.mark.parametrize("form", ["zip.pth", "old.pth", "file.safetensors"])
def test_a_mapping_renewed_on_the_way_gives_the_same_tensors(
    written: Written, form: str, tmp_path: Path
) -> None:
    path = written(form, "fp32")
    expected = {name: tensor.clone() for name, tensor in read(path).items()}
    if form == "old.pth":
        torch.save(expected, path, _use_new_zipfile_serialization=False)
    found = read(path)
    assert sum(tensor.nbytes for tensor in found.values()) > 6 * (16 << 20)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def read(path: Path) -> dict[str, torch.Tensor]:
    return dict(read_weights(path, torch.float32, torch.device("cpu")).tensors)


def test_a_file_exchanged_on_the_way_is_named(written: Written, tmp_path: Path) -> None:
    path, other = written("exchanged.pth", "fp32"), tmp_path / "other.pth"
    write_random_weights(other)
    with open_tensors(path) as (_, load):
        load("emb.weight")  # more than a sixteenth
        other.replace(path)
        with pytest.raises(WeightsError, match=r"exchanged\.pth: it changed while it was read"):
            load("head.weight")
