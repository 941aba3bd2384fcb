"""What can be said of a GPU without one: every tensor is made on the weights' device, and nothing
on the way asks for a value.

Tensors of the kind "meta" have a device of their own and no values. As fake tensors, torch refuses
to compute with two of different devices; an operation that needs values fails on either kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rwkv_runtime import model
from rwkv_runtime.engines import load_engine
from rwkv_runtime.engines.batch import Batch
from rwkv_runtime.engines.rwkv7 import Rwkv7Engine
from rwkv_runtime.model import ModelState, Weights
from rwkv_runtime.testing import small_architecture, write_random_weights
from rwkv_runtime.weights import WeightsFile, read_weights
from rwkv_runtime.weights.tuned import TunedState
from rwkv_runtime.wkv import SUB_CHUNK

META = torch.device("meta")
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LENGTHS = [1, 2, SUB_CHUNK, 3 * SUB_CHUNK + 5]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("devices") / "model.safetensors"
    write_random_weights(path, small_architecture(layers=3))
    return path


@contextmanager
def faked(path: Path, dtype: torch.dtype) -> Iterator[Weights]:
    file = read_weights(path, dtype, torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=False):
        yield Weights.of(
            {
                name: torch.empty(tensor.shape, dtype=dtype, device=META)
                for name, tensor in file.tensors.items()
            }
        )


def elsewhere(path: Path, dtype: torch.dtype) -> Rwkv7Engine:
    """An engine whose weights have no values."""
    real = load_engine(path, threads=1, cache_dir=path.parent)
    file = read_weights(path, dtype, torch.device("cpu"))
    tensors = {name: tensor.to(META) for name, tensor in file.tensors.items()}
    tuned = TunedState("", tuple(torch.ones(2, 64, 64) for _ in range(3)))
    return Rwkv7Engine(
        WeightsFile(file.architecture, tensors), real.fingerprint, real.rule, 1, tuned
    )


def is_there(state: ModelState, dtype: torch.dtype) -> bool:
    kinds = {(x.device, x.dtype) for layer in state for x in (layer.att_x_prev, layer.ffn_x_prev)}
    matrices = {(layer.att_kv.device, layer.att_kv.dtype) for layer in state}
    return kinds == {(META, dtype)} and matrices == {(META, torch.float32)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows", [1, 8])
def test_a_pass_stays_on_its_device(path: Path, dtype: torch.dtype, length: int, rows: int) -> None:
    with faked(path, dtype) as weights:
        tokens = torch.zeros(rows, length, dtype=torch.int64, device=META)
        state = model.zero_state(weights, batch=rows)
        hidden, after = model.forward(weights, tokens, state)
        logits = model.logits(weights, hidden[:, -1])
        assert is_there(state, dtype)
        assert is_there(after, dtype)
        assert (logits.device, logits.dtype) == (META, dtype)


def test_a_tensor_elsewhere_is_noticed(path: Path) -> None:
    """So the test above can fail."""
    with faked(path, torch.float32) as weights:
        tokens = torch.zeros(1, 4, dtype=torch.int64, device=META)
        state = model.zero_state(weights)
        left = replace(state[1], att_kv=torch.zeros(1, 2, 64, 64))
        with pytest.raises(RuntimeError, match="device"):
            model.forward(weights, tokens, (state[0], left, state[2]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_takes_tokens_to_its_device_and_waits_for_nothing(
    path: Path, dtype: torch.dtype
) -> None:
    engine = elsewhere(path, dtype)
    state = engine.initial_state()
    assert is_there(state, dtype)
    output, state = engine.prefill(torch.arange(40), state)
    assert is_there(state, dtype)
    output, state = engine.decode(3, state)
    assert is_there(state, dtype)
    assert output.device == engine.logits(output).device == META


@pytest.mark.parametrize("dtype", DTYPES)
def test_so_does_a_batch(path: Path, dtype: torch.dtype) -> None:
    engine = elsewhere(path, dtype)
    batch = Batch(engine, 8)
    places = [batch.join(engine.initial_state()) for _ in range(3)]
    assert batch.advance(dict.fromkeys(places, 5)).device == META
    assert is_there(batch.leave(places[1]), dtype)
