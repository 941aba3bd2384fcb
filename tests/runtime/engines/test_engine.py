"""What every engine promises, shown on RWKV-7 and on the example in the port's docstring."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rwkv_runtime import Runtime
from rwkv_runtime import state as bridge
from rwkv_runtime.engines import Engine, Rwkv7Engine, base, check_tokens, load_engine
from rwkv_runtime.engines.processor import described, processor
from rwkv_runtime.engines.rwkv7 import PARTS
from rwkv_runtime.engines.switches import switches
from rwkv_runtime.errors import DeviceError, VocabularyError, WeightsError
from rwkv_runtime.testing import small_architecture, write_random_weights
from statestore import buffers, open_store, schema
from statestore.buffers import ALIGNMENT
from statestore.errors import StateError
from statestore.keys import ChunkRule, Fingerprint
from statestore.schema import State

Load = Callable[..., Rwkv7Engine]


def example() -> Engine:
    """The engine that the port's docstring shows."""
    assert base.__doc__ is not None
    code = textwrap.dedent(base.__doc__[base.__doc__.index("    class Recency") :])
    names: dict[str, Any] = {
        "torch": torch,
        "check_tokens": check_tokens,
        "to_stored": bridge.to_stored,
        "from_stored": bridge.from_stored,
        "ChunkRule": ChunkRule,
        "Fingerprint": Fingerprint,
        **vars(schema),
    }
    exec(code, names)
    engine: Engine = names["Recency"]()
    return engine


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leaves torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "random.pth"
    write_random_weights(path, small_architecture(vocabulary=300))
    return path


@pytest.fixture(scope="module")
def load(weights: Path) -> Load:
    def loaded(path: Path = weights, **options: Any) -> Rwkv7Engine:
        return load_engine(path, cache_dir=weights.parent, **options)

    return loaded


@pytest.fixture(
    scope="module", params=["fp32", "bf16", "fp16", "native fp32", "native bf16", "example"]
)
def engine(request: pytest.FixtureRequest, load: Load) -> Engine:
    if request.param == "example":
        return example()
    kernel, _, dtype = request.param.rpartition(" ")
    return load(dtype=dtype, kernel=kernel or "torch")


def content(state: State) -> list[bytes]:
    """Every bit of a stored state."""
    return [bytes(tensor.data) for tensor in state.parts]


def elsewhere(state: State) -> State:
    """The same bits in other memory, as a load gives them: aligned, so that an engine shares it."""
    parts = []
    for tensor in state.parts:
        room = buffers.take(len(tensor.data))
        room[:] = tensor.data
        parts.append(schema.Tensor(tensor.spec, room))
    if state.output is None:
        return State(state.schema_id, tuple(parts))
    return State(state.schema_id, tuple(parts[:-1]), parts[-1])


tokens_lists = st.lists(st.integers(0, 255), min_size=1, max_size=40)


@given(first=tokens_lists, second=tokens_lists, token=st.integers(0, 255))
def test_states_are_values_and_come_back_bit_for_bit(
    engine: Engine, first: list[int], second: list[int], token: int
) -> None:
    output, state = engine.prefill(torch.tensor(first), engine.initial_state())
    stored = elsewhere(engine.to_stored(state, output))
    before = content(stored)
    results = []
    for start in (state, engine.from_stored(stored)[0], state):
        resumed, after = engine.prefill(torch.tensor(second), start)
        said, decoded = engine.decode(token, start)
        results.append(
            content(engine.to_stored(after, resumed)) + content(engine.to_stored(decoded, said))
        )
        assert content(engine.to_stored(start, output)) == before
        assert content(stored) == before
    assert results[1] == results[0]
    assert results[2] == results[0]


@given(tokens=tokens_lists)
def test_logits_of_a_stored_output_are_the_same_bits(engine: Engine, tokens: list[int]) -> None:
    output, state = engine.prefill(torch.tensor(tokens), engine.initial_state())
    _, kept = engine.from_stored(elsewhere(engine.to_stored(state, output)))
    assert kept is not None
    logits = engine.logits(output)
    assert logits.dtype == torch.float32
    assert logits.shape == (engine.vocabulary,)
    assert torch.equal(logits, engine.logits(kept))


def test_what_was_stored_is_never_written_to(engine: Engine) -> None:
    output, state = engine.prefill(torch.tensor([1, 2, 3]), engine.initial_state())
    stored = elsewhere(engine.to_stored(state, output))
    loaded, kept = engine.from_stored(stored)
    assert kept is not None
    engine.prefill(torch.tensor([4, 5, 6]), loaded)
    engine.decode(7, loaded)
    engine.logits(kept)
    assert content(stored) == content(engine.to_stored(state, output))


@pytest.mark.parametrize("kernel", ["torch", "native"])
@pytest.mark.parametrize("length", [1, 2, 16, 17])
def test_a_computed_state_lies_as_a_loaded_one_does(load: Load, length: int, kernel: str) -> None:
    """Which routine multiplies a matrix may depend on its strides and where it begins."""
    engine = load(kernel=kernel)
    output, state = engine.prefill(torch.tensor(range(length)), engine.initial_state())
    loaded, kept = engine.from_stored(elsewhere(engine.to_stored(state, output)))
    assert kept is not None
    pairs = [(output, kept)]
    for computed, again in zip(state, loaded, strict=True):
        pairs += [(getattr(computed, part), getattr(again, part)) for part in PARTS]
    for one, other in pairs:
        assert one.stride() == other.stride()
        assert one.data_ptr() % ALIGNMENT == other.data_ptr() % ALIGNMENT == 0


def test_the_output_may_be_left_out(engine: Engine) -> None:
    output, state = engine.prefill(torch.tensor([1]), engine.initial_state())
    assert engine.from_stored(engine.to_stored(state, None))[1] is None
    assert engine.to_stored(state, output).output is not None


def test_a_stored_state_fits_the_schema(engine: Engine) -> None:
    output, state = engine.prefill(torch.tensor([1]), engine.initial_state())
    engine.schema.validate(engine.to_stored(state, output))
    engine.schema.validate(engine.to_stored(engine.initial_state(), None))
    assert engine.fingerprint.chunk == engine.rule.chunk
    assert engine.fingerprint.min_chunk == engine.rule.min_chunk


def test_the_example_is_served_from_a_store(tmp_path: Path) -> None:
    document, question = list(b"said and said again. " * 9), list(b"and")
    with open_store((tmp_path / "store").as_uri()) as store, Runtime(example(), store) as runtime:
        cold = runtime.prefill([document, question])
        runtime.flush()
        warm = runtime.prefill([document, question])
    assert (cold.cached_tokens, warm.computed_tokens) == (0, len(question))
    assert torch.equal(warm.logits, cold.logits)
    assert int(warm.logits.argmax()) == ord("d")


@pytest.mark.parametrize("bad", [-1, 300, 2**32 - 1])
def test_tokens_outside_the_vocabulary_are_named(engine: Engine, bad: int) -> None:
    with pytest.raises(VocabularyError, match=f"token 2 is {bad}"):
        engine.prefill(torch.tensor([1, 2, bad, bad]), engine.initial_state())
    with pytest.raises(VocabularyError, match="at least one"):
        engine.prefill(torch.tensor([], dtype=torch.int64), engine.initial_state())


def test_a_decoded_token_outside_the_vocabulary_is_named(load: Load) -> None:
    engine = load()
    with pytest.raises(VocabularyError, match=r"300.*0 to 299"):
        engine.decode(300, engine.initial_state())


@pytest.mark.parametrize("kernel", ["torch", "native"])
def test_threads_share_an_engine_and_its_states(load: Load, kernel: str) -> None:
    engine = load(threads=1, kernel=kernel)
    _, state = engine.prefill(torch.arange(50), engine.initial_state())
    results: list[list[bytes]] = []

    def run() -> None:
        for _ in range(20):
            output, after = engine.prefill(torch.arange(20), state)
            output, after = engine.decode(7, after)
            results.append(content(engine.to_stored(after, output)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80
    assert all(result == results[0] for result in results)


def test_the_wanted_number_of_threads_holds_in_every_thread(load: Load) -> None:
    engine = load(threads=1)
    torch.set_num_threads(2)
    seen: list[int] = []

    def run() -> None:
        engine.prefill(torch.tensor([1]), engine.initial_state())
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [1]


def test_lower_precisions_stay_near_fp32(load: Load) -> None:
    def logits(dtype: str) -> Tensor:
        engine = load(dtype=dtype)
        output, _ = engine.prefill(torch.arange(200), engine.initial_state())
        return engine.logits(output)

    exact = logits("fp32")
    for dtype, bound in (("bf16", 5e-2), ("fp16", 5e-3)):
        assert 0 < (logits(dtype) - exact).norm() / exact.norm() < bound


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_head_without_keys_is_no_nan(load: Load, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "silent.pth"
    write_random_weights(path)
    tensors = torch.load(path)
    tensors["blocks.1.att.key.weight"][:64] = 0
    torch.save(tensors, path)
    engine = load(path, dtype=dtype)
    output, state = engine.prefill(torch.arange(40), engine.initial_state())
    assert torch.isfinite(engine.logits(output)).all()
    assert torch.isfinite(engine.logits(engine.decode(3, state)[0])).all()


def test_a_state_of_another_dtype_is_refused(load: Load) -> None:
    engine, other = load(dtype="fp32"), load(dtype="bf16")
    stored = other.to_stored(other.initial_state(), None)
    with pytest.raises(StateError, match="BF16"):
        engine.from_stored(stored)


def digest(engine: Engine) -> bytes:
    return engine.fingerprint.digest


def test_the_fingerprint_tells_apart_what_decides_bits(load: Load, tmp_path: Path) -> None:
    write_random_weights(tmp_path / "other.pth", small_architecture(vocabulary=300), seed=1)
    engines = [
        load(),
        load(tmp_path / "other.pth"),
        load(dtype="bf16"),
        load(rule=ChunkRule(chunk=128)),
        load(rule=ChunkRule(min_chunk=16)),
        load(strict=True, threads=1),
        load(strict=True, threads=2),
        load(kernel="native"),
        load(kernel="native", dtype="bf16"),
    ]
    assert len({digest(engine) for engine in engines}) == len(engines)


def test_the_fingerprint_leaves_out_what_does_not(
    load: Load, weights: Path, tmp_path: Path
) -> None:
    shutil.copy(weights, tmp_path / "renamed.bin")
    expected = digest(load())
    assert digest(load(tmp_path / "renamed.bin")) == expected
    assert digest(load(rule=ChunkRule(stride=3))) == expected
    assert digest(load(threads=1)) == digest(load(threads=2)) == expected


def test_a_strict_engine_keeps_to_the_threads_it_found(load: Load) -> None:
    torch.set_num_threads(2)
    engine = load(strict=True)
    assert ("threads", "2") in engine.fingerprint.extra
    torch.set_num_threads(1)
    engine.prefill(torch.tensor([1]), engine.initial_state())
    assert torch.get_num_threads() == 2


def test_a_switch_that_changes_bits_is_in_the_fingerprint(load: Load) -> None:
    expected = digest(load())
    torch.set_float32_matmul_precision("medium")
    try:
        assert digest(load()) != expected
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_an_environment_that_lowers_precision_is_in_the_fingerprint(
    load: Load, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = digest(load())
    monkeypatch.setenv(name, "BF16")
    assert digest(load()) != expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allow_bf16_reduced_precision_reduction", False),
        ("allow_fp16_reduced_precision_reduction", False),
        ("allow_fp16_accumulation", True),
    ],
)
def test_what_changes_bits_on_a_gpu_alone_is_told_for_a_gpu_alone(name: str, value: bool) -> None:
    matmul = torch.backends.cuda.matmul
    before = getattr(matmul, name)
    assert switches("cuda") == ()
    setattr(matmul, name, value)
    try:
        assert switches("cuda") == ((name, str(value)),)
        assert switches("cpu") == ()
    finally:
        setattr(matmul, name, before)


def test_an_environment_that_goes_over_torchs_head_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert switches("cuda") == (("NVIDIA_TF32_OVERRIDE", "1"),)
    assert switches("cpu") == ()


def test_a_strict_fingerprint_names_the_processor(load: Load) -> None:
    known = processor()
    assert known
    assert set(known) <= set(load(strict=True, threads=1).fingerprint.extra)
    assert not set(known) & set(load(threads=1).fingerprint.extra)


CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R)
stepping\t: 8
flags\t\t: fpu sse2 avx512f fma avx2 {more}

processor\t: 1
flags\t\t: fpu
"""


def test_processors_are_told_apart_by_what_kernels_are_written_in() -> None:
    plain = described(CPUINFO.format(more=""))
    assert plain == (
        ("processor", "GenuineIntel Intel(R) Xeon(R) 6 143 8"),
        ("instructions", "avx2 avx512f fma"),
    )
    assert described(CPUINFO.format(more="ssbd ibrs")) == plain
    assert (
        len({described(CPUINFO.format(more=more)) for more in ("", "amx_bf16", "avx512_bf16")}) == 3
    )
    arm = "CPU implementer : 0x41\nCPU part : 0xd40\nFeatures : fp asimd sve bf16\n"
    assert described(arm) == (("processor", "0x41 0xd40"), ("instructions", "asimd bf16 sve"))
    assert described("") == described("no colons\n:") == ()


NEWER = """
import sys
import torch
from rwkv_runtime import load_engine
from rwkv_runtime.engines.adapter import load_package_engine
torch.set_num_threads(1)
digests = []
for place, value in (
    (torch.backends.cuda, "tf32"),  # of no interest to a processor
    (torch.backends.mkldnn, "bf16"),
    (torch.backends.mkldnn, "tf32"),
):
    if not hasattr(place.matmul, "fp32_precision"):
        sys.exit()
    place.matmul.fp32_precision = value
    digests.append(load_engine(sys.argv[1]).fingerprint.digest.hex())
load_package_engine(sys.argv[2])
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
print(*digests)
"""


def test_precisions_by_their_newer_names_are_in_it_too(tmp_path: Path) -> None:
    """In a process of its own: torch has no way back to the older names."""
    paths = [tmp_path / "model.safetensors", tmp_path / "model.pth"]
    for path in paths:
        write_random_weights(path, small_architecture(), seed=1)
    ended = subprocess.run(
        [sys.executable, "-c", NEWER, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    digests = ended.stdout.split()
    if digests:
        assert digests[0] == load_engine(paths[0]).fingerprint.digest.hex()
        assert len(set(digests)) == 3


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own, of setting any of its flags
def test_packing_switched_off_is_in_the_fingerprint(load: Load) -> None:
    expected = digest(load())
    with torch.backends.mkldnn.flags(enabled=False):
        assert digest(load()) != expected
    assert digest(load()) == expected


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"dtype": "fp8"}, "fp32, bf16, fp16"),
        ({"device": "tpu"}, "cpu, cuda"),
        ({"threads": 0}, "expected 1 to 1024"),
    ],
)
def test_options_that_mean_nothing_are_named(
    load: Load, options: dict[str, Any], what: str
) -> None:
    with pytest.raises(DeviceError, match=what):
        load(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(load: Load) -> None:
    with pytest.raises(DeviceError, match="no GPU"):
        load(device="cuda")


def test_a_file_that_changes_while_it_is_loaded_is_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    shutil.copy(weights, path)

    def change(_done: int, _total: int) -> None:
        write_random_weights(path, small_architecture(vocabulary=300), seed=9)

    with pytest.raises(WeightsError, match="changed while"):
        load_engine(path, progress=change, cache_dir=tmp_path)


def test_the_path_may_be_text(weights: Path) -> None:
    assert load_engine(str(weights), cache_dir=weights.parent).vocabulary == 300


@pytest.mark.parametrize("number", [0, -1, 100_000])
def test_a_number_of_threads_that_no_machine_has_is_refused(model_path: Path, number: int) -> None:
    with pytest.raises(DeviceError, match=str(number)):
        load_engine(model_path, threads=number)
