"""Rounded states: what is kept, and that warm still equals cold bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rwkv_runtime import Prefill, Runtime
from rwkv_runtime.engines import Rwkv7Engine, load_engine, load_package_engine
from rwkv_runtime.engines.lossy import LossyEngine
from rwkv_runtime.engines.rounding import expanded, rounded, rounded_schema
from rwkv_runtime.errors import NumericsError
from rwkv_runtime.names import LOSSY, Lossy
from rwkv_runtime.session.admission import Everything
from statestore import StateStore, open_store
from statestore.errors import SettingsError
from statestore.keys import ChunkRule
from statestore.schema import DType, Schema, TensorSpec, rwkv7
from tests.runtime.engines.test_adapter import DOCUMENT, QUESTION, weights_of
from tests.runtime.engines.test_adapter import RULE as PACKAGE_RULE
from tests.runtime.session.test_exactness import assert_same_bits, make
from tests.runtime.weights.old_versions import write_old_weights
from tests.runtime.workers.processes import Profile, Workers

kinds = pytest.mark.parametrize("lossy", LOSSY)
VECTOR = TensorSpec("vector", DType.F32, (6,))
MATRIX = TensorSpec("matrix", DType.F32, (2, 3, 4))
HALF = TensorSpec("half", DType.BF16, (5,))
SCHEMA = Schema("test", (VECTOR, MATRIX, HALF), width=6)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
bounded = st.floats(-1000, 1000, width=32)


def tensors_of(values: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, Tensor]]:
    def of(shape: tuple[int, ...]) -> st.SearchStrategy[Tensor]:
        size = math.prod(shape)
        listed = st.lists(values, min_size=size, max_size=size)
        return listed.map(lambda found: torch.tensor(found).view(shape))

    half = st.just(torch.arange(5).to(torch.bfloat16))
    return st.fixed_dictionaries({"vector": of((6,)), "matrix": of((2, 3, 4)), "half": half})


def bits(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        name: tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors.items()
    }


@kinds
@given(tensors=tensors_of(floats))
def test_rounding_what_was_rounded_changes_no_bit(lossy: Lossy, tensors: dict[str, Tensor]) -> None:
    once = rounded(tensors, lossy)
    whole = expanded(once, SCHEMA, lossy)
    assert bits(rounded(whole, lossy)) == bits(once)
    assert bits(expanded(rounded(whole, lossy), SCHEMA, lossy)) == bits(whole)
    assert {name: tuple(tensor.shape) for name, tensor in once.items()} == {
        spec.name: spec.shape for spec in rounded_schema(SCHEMA, lossy).tensors
    }


@kinds
@given(tensors=tensors_of(bounded))
def test_what_is_kept_is_near(lossy: Lossy, tensors: dict[str, Tensor]) -> None:
    whole = expanded(rounded(tensors, lossy), SCHEMA, lossy)
    matrix = tensors["matrix"]
    if lossy == "int8":
        most = matrix.abs().amax(-1, keepdim=True) / 127 * 0.5003 + 1e-30
        assert torch.equal(whole["vector"], tensors["vector"])
    else:
        most = matrix.abs() * (2.0**-11 if lossy == "fp16" else 2.0**-8) + 1e-7
        assert torch.allclose(whole["vector"], tensors["vector"], rtol=2**-8, atol=1e-7)
    assert bool(((whole["matrix"] - matrix).abs() <= most).all())
    assert torch.equal(whole["half"], tensors["half"])


@kinds
def test_what_is_too_large_becomes_the_largest(lossy: Lossy) -> None:
    most = torch.finfo(torch.float32).max
    tensors = {"matrix": torch.full((2, 3, 4), -most), "vector": torch.full((6,), most)}
    tensors["half"] = torch.zeros(5, dtype=torch.bfloat16)
    whole = expanded(rounded(tensors, lossy), SCHEMA, lossy)
    assert bool(torch.isfinite(whole["matrix"]).all())
    wanted = {"fp16": 65504.0, "bf16": torch.finfo(torch.bfloat16).max, "int8": most}[lossy]
    assert torch.allclose(whole["matrix"], torch.tensor(-wanted), rtol=1e-2)


@kinds
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_by_name(lossy: Lossy, value: float) -> None:
    matrix = torch.zeros(2, 3, 4)
    matrix[1, 2, 3] = value
    with pytest.raises(NumericsError, match="matrix holds NaN or infinity"):
        rounded({"matrix": matrix}, lossy)


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Rwkv7Engine:
    return load_engine(model_path, threads=1, rule=ChunkRule(16, 4, 2))


@kinds
def test_a_state_comes_back_bit_for_bit(engine: Rwkv7Engine, lossy: Lossy) -> None:
    around = LossyEngine(engine, lossy)
    output, state = around.prefill(torch.arange(40), around.initial_state())
    stored = around.to_stored(state, output)
    around.schema.validate(stored)
    again, same_output = around.from_stored(stored)
    assert same_output is not None
    assert torch.equal(output, same_output)
    for one, other in zip(state.engine, again.engine, strict=True):
        for part in ("att_x_prev", "att_kv", "ffn_x_prev"):
            assert torch.equal(getattr(one, part), getattr(other, part))
    unrounded = engine.prefill(torch.arange(40), engine.initial_state())[1]
    assert not torch.equal(unrounded[0].att_kv, state.engine[0].att_kv)
    assert torch.allclose(unrounded[0].att_kv, state.engine[0].att_kv, atol=0.05)


@kinds
def test_a_state_after_new_tokens_can_be_stored(engine: Rwkv7Engine, lossy: Lossy) -> None:
    around = LossyEngine(engine, lossy)
    _, state = around.prefill(torch.arange(20), around.initial_state())
    output, state = around.decode(5, state)
    around.schema.validate(around.to_stored(state, output))


def test_every_setting_has_its_own_states(engine: Rwkv7Engine) -> None:
    made = [engine, *(LossyEngine(engine, lossy) for lossy in LOSSY)]
    assert len({one.fingerprint.digest for one in made}) == len(made)
    assert len({one.schema.id for one in made}) == len(made)


def test_states_shrink() -> None:
    schema = rwkv7(layers=12, width=768, heads=12, head_size=64)
    shares = {kind: rounded_schema(schema, kind).nbytes / schema.nbytes for kind in LOSSY}
    assert shares["fp16"] == shares["bf16"] == 0.5
    assert shares["int8"] < 0.3


@kinds
@settings(max_examples=6)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4).filter(sum),
    more=st.lists(st.integers(1, 60), min_size=1, max_size=2),
    seed=st.integers(0, 2**32),
)
def test_warm_in_another_process_equals_cold(
    workers: Workers, lossy: Lossy, lengths: list[int], more: list[int], seed: int
) -> None:
    profile = Profile(lossy=lossy)
    first, second = make(lengths, seed), make(more, seed + 1)
    with TemporaryDirectory() as directory:
        url = Path(directory, "store").as_uri()
        cold = workers(profile, 0).prefill(first, url)
        again = workers(profile, 1).prefill(first, url)
        longer = workers(profile, 1).prefill(first + second, url)
    afresh = workers(profile, 0).prefill(first + second, None)
    assert (cold["cached"], again["computed"]) == (0, 0)
    assert_same_bits(again, cold)
    assert_same_bits(longer, afresh)


@settings(max_examples=4)
@given(lengths=st.lists(st.integers(20, 90), min_size=2, max_size=4), seed=st.integers(0, 2**32))
def test_warm_equals_cold_with_the_compiled_kernel_too(
    workers: Workers, lengths: list[int], seed: int
) -> None:
    profile = Profile(dtype="bf16", lossy="int8", kernel="native")
    segments = make(lengths, seed)
    with TemporaryDirectory() as directory:
        url = Path(directory, "store").as_uri()
        workers(profile, 0).prefill(segments[:-1], url)
        warm = workers(profile, 1).prefill(segments, url)
    assert warm["cached"] > 0
    assert_same_bits(warm, workers(profile, 0).prefill(segments, None))


@pytest.mark.parametrize(
    ("version", "strategy", "lossy"),
    [
        ("4", "cpu fp32", "fp16"),
        ("5.2", "cpu fp32", "int8"),
        ("6", "cpu bf16", "int8"),
        ("7", "cpu fp32", "bf16"),
        ("7a", "cpu fp32", "int8"),
    ],
)
def test_warm_equals_cold_with_the_package_too(
    version: str, strategy: str, lossy: Lossy, tmp_path: Path
) -> None:
    """An engine of its own for each run, as another process has it."""
    path = weights_of(version, tmp_path)

    def read(store: StateStore | None, *segments: list[int]) -> tuple[Prefill, list[bytes]]:
        engine = load_package_engine(path, strategy, rule=PACKAGE_RULE, threads=1, lossy=lossy)
        with Runtime(engine, store, admission=Everything()) as runtime:
            result = runtime.prefill(list(segments))
        stored = engine.to_stored(result.state, result.output)
        return result, [bytes(tensor.data) for tensor in stored.parts]

    with open_store((tmp_path / "store").as_uri()) as store:
        read(store, DOCUMENT)
        warm, warm_bits = read(store, DOCUMENT, QUESTION)
    cold, cold_bits = read(None, DOCUMENT, QUESTION)
    assert warm.cached_tokens > len(DOCUMENT) - PACKAGE_RULE.chunk
    assert torch.equal(warm.logits, cold.logits)
    assert warm_bits == cold_bits


@kinds
def test_where_others_save_means_nothing(workers: Workers, lossy: Lossy) -> None:
    """The same chunks under other segments and another stride have the same keys: a state that was
    saved at every chunk end must be the one that is computed without saving any.
    """
    (tokens,) = make([64], seed=1)
    everywhere, nowhere = Profile(stride=1, lossy=lossy), Profile(stride=1000, lossy=lossy)
    cut = [tokens[:16], tokens[16:48], tokens[48:]]
    with TemporaryDirectory() as directory:
        url = Path(directory, "store").as_uri()
        workers(everywhere).prefill(cut, url)
        warm = workers(nowhere).prefill([tokens], url)
    cold = workers(nowhere).prefill([tokens], None)
    assert warm["cached"] == 64
    assert_same_bits(warm, cold)


def test_the_setting_is_given_where_an_engine_is_loaded(model_path: Path, tmp_path: Path) -> None:
    write_old_weights(tmp_path / "old.pth", "6")
    for lossy in LOSSY:
        adapted = load_package_engine(tmp_path / "old.pth", lossy=lossy)
        assert isinstance(adapted, LossyEngine)
        assert adapted.fingerprint.lossy == lossy
        assert load_engine(model_path, lossy=lossy).fingerprint.lossy == lossy
    assert load_engine(model_path).fingerprint.lossy == "none"
    with pytest.raises(SettingsError, match="'int4' is not known; there are: fp16, bf16, int8"):
        load_engine(model_path, lossy="int4")
