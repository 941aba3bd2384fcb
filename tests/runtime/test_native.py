"""The compiled kernel: its bits are its own on every processor, and near the reference's."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_runtime import model
from rwkv_runtime.engines import Rwkv7Engine, load_engine
from rwkv_runtime.errors import VocabularyError
from rwkv_runtime.model import LayerState, ModelState
from rwkv_runtime.native import REVISION, Kernel, library
from rwkv_runtime.native.blocks import BLOCK, Arranger
from rwkv_runtime.projection import can_pack, packed
from rwkv_runtime.testing import small_architecture, write_random_weights
from rwkv_runtime.weights import Architecture, WeightsFile, read_weights
from statestore.errors import SettingsError, StateError

CPU = torch.device("cpu")
X86 = platform.machine() in ("x86_64", "AMD64")
BUILDS = {"native": None, "plain": ()} | ({"avx2": ("-march=x86-64-v3",)} if X86 else {})
PARTS = ("att_x_prev", "att_kv", "ffn_x_prev")
TOKENS = (5, 0, 49, 5)
SHAPES = {
    "wide": small_architecture(layers=3, width=512, heads=8, vocabulary=50),
    "heads of 16, no whole blocks": small_architecture(width=48, heads=3, vocabulary=50),
    "heads of 128": small_architecture(width=256, heads=2, vocabulary=50),
    "one layer": replace(
        small_architecture(layers=1, width=64, heads=1, vocabulary=50), rate_rank=7, gate_rank=200
    ),
}
GOLDEN = {  # of REVISION, on every machine
    torch.float32: "9476f9c70d7bd74b11776dc9220ee6095a0087a2f9daa6dd3980d713e1d09ec0",
    torch.bfloat16: "4a3d68aa7f4b1ba4b87ef2da9865f30b5752cb5fc2549f133e218df92b8e3c0f",
}
Run = tuple[list[Tensor], ModelState]


def definite(architecture: Architecture, dtype: torch.dtype) -> WeightsFile:
    """Weights that are the same to the last bit everywhere, unlike torch's random ones."""
    tensors = {}
    for number, (name, shape) in enumerate(architecture.shapes().items()):
        count = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(7919 * number + 1)
        noise = (count * np.uint64(2654435761) % np.uint64(1 << 32)).astype(np.float64)
        scale = 2.0 / shape[-1] ** 0.5 if len(shape) > 1 else 1.0
        values = (noise / 2**32 - 0.5) * scale
        tensors[name] = torch.from_numpy(values.reshape(shape)).to(dtype)
    return WeightsFile(architecture, tensors)


def run_beside(kernel: Kernel, state: ModelState, others: int) -> Run:
    """The last of several streams, which begin at one state and read other tokens."""
    logits, states = [], (state,) * (others + 1)
    for token in TOKENS:
        beside = [(token + 1 + other) % 50 for other in range(others)]
        hidden, states = kernel.steps([*beside, token], states)
        logits.append(kernel.logits(hidden)[-1])
    return logits, states[-1]


def run(kernel: Kernel, state: ModelState) -> Run:
    logits = []
    for token in TOKENS:
        hidden, state = kernel.step(token, state)
        logits.append(kernel.logits(hidden))
    return logits, state


def referred(weights: WeightsFile, state: ModelState) -> Run:
    """What the model itself says, in the weights' dtype."""
    bound, logits = model.Weights.of(weights.tensors), []
    for token in TOKENS:
        hidden, state = model.forward(bound, torch.tensor([[token]]), state)
        logits.append(model.logits(bound, hidden[0, 0]))
    return logits, state


def begin(weights: WeightsFile) -> ModelState:
    return model.zero_state(model.Weights.of(weights.tensors))


def tensors_of(found: Run) -> list[Tensor]:
    logits, state = found
    return [*logits, *(getattr(layer, part) for layer in state for part in PARTS)]


def digest(found: Run) -> str:
    whole = hashlib.sha256()
    for tensor in tensors_of(found):
        whole.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def error(found: Run, expected: Run) -> float:
    pairs = zip(tensors_of(found), tensors_of(expected), strict=True)
    return max(
        float((one.double() - other.double()).abs().max() / other.double().abs().max())
        for one, other in pairs
    )


@pytest.fixture
def weights() -> WeightsFile:
    return definite(SHAPES["heads of 16, no whole blocks"], torch.float32)


@pytest.fixture
def kernel(weights: WeightsFile) -> Kernel:
    return Kernel(weights, library())


@pytest.mark.parametrize("dtype", GOLDEN)
@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_revision_stands_for_these_bits(dtype: torch.dtype, build: str, threads: int) -> None:
    """Whatever the processor's registers, and however many threads compute."""
    assert REVISION == 1, "record the digests of the new revision"
    weights = definite(SHAPES["wide"], dtype)
    kernel = Kernel(weights, library(flags=BUILDS[build]))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert digest(run(kernel, begin(weights))) == GOLDEN[dtype], "raise REVISION"
        for others in (1, 2, 3, 6) if build != "plain" else (3,):
            assert digest(run_beside(kernel, begin(weights), others)) == GOLDEN[dtype]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("build", BUILDS)
def test_compilers_agree(compiler: str, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"not run: {compiler} is not installed")
    monkeypatch.setenv("CC", compiler)
    for dtype, golden in GOLDEN.items():
        weights = definite(SHAPES["wide"], dtype)
        kernel = Kernel(weights, library(flags=BUILDS[build]))
        assert digest(run(kernel, begin(weights))) == golden


@pytest.mark.parametrize("shape", SHAPES)
def test_in_fp32_it_is_as_near_the_reference_as_pytorch(shape: str) -> None:
    weights = definite(SHAPES[shape], torch.float32)
    exact = WeightsFile(SHAPES[shape], {k: v.double() for k, v in weights.tensors.items()})
    expected = referred(exact, begin(exact))
    found = run(Kernel(weights, library()), begin(weights))
    assert error(found, expected) < max(
        2e-6, 2 * error(referred(weights, begin(weights)), expected)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_in_bf16_it_is_nearer_the_reference_than_pytorch(shape: str) -> None:
    """It rounds what it keeps, and nothing in between."""
    weights = definite(SHAPES[shape], torch.bfloat16)
    exact = WeightsFile(SHAPES[shape], {k: v.double() for k, v in weights.tensors.items()})
    expected = referred(exact, begin(exact))
    found = error(run(Kernel(weights, library()), begin(weights)), expected)
    assert 0 < found < error(referred(weights, begin(weights)), expected)


@pytest.mark.parametrize("dtype", GOLDEN)
def test_packed_matrices_change_no_bit_and_are_not_copied(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "wide.safetensors"
    write_random_weights(path, SHAPES["wide"])
    plain = read_weights(path, dtype, CPU)
    in_blocks = read_weights(path, dtype, CPU, rows=256)
    one, other = (Kernel(weights, library()) for weights in (plain, in_blocks))
    assert digest(run(one, begin(plain))) == digest(run(other, begin(plain)))
    if can_pack(dtype, CPU) and "AVX512" in torch.backends.cpu.get_cpu_capability():
        owned = {id(owner) for owner in other._bound.memory}
        large = [t for name, t in in_blocks.tensors.items() if t.is_mkldnn]
        assert len(large) == 6 * 3
        assert all(id(tensor) in owned for tensor in large)


@pytest.mark.parametrize("dtype", GOLDEN)
@pytest.mark.parametrize("shape", [(512, 512), (700, 900), (600, 1001), (50, 7)])
def test_blocks_lie_as_they_are_described(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Also where oneDNN packs a matrix in another way."""
    weight = torch.randn(shape).to(dtype)
    for given in (weight, packed(weight, 256)):
        blocks = Arranger().blocks_of(given)
        group = 1 if dtype == torch.float32 else 2
        size = blocks.out * blocks.inputs * weight.element_size()
        assert (blocks.out % BLOCK, blocks.inputs % 2) == (0, 0)
        memory = (ctypes.c_byte * size).from_address(blocks.address)
        lies = torch.frombuffer(memory, dtype=dtype).view(-1, blocks.inputs // group, BLOCK, group)
        back = lies.transpose(1, 2).reshape(blocks.out, blocks.inputs)
        assert torch.equal(back[: shape[0], : shape[1]], weight)
        assert not back[shape[0] :].any()
        assert not back[:, shape[1] :].any()


def test_what_is_packed_otherwise_is_seen_and_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout is believed after its bytes were compared, and only then."""
    weight = torch.randn(512, 512)
    given = packed(weight, 256)
    if not given.is_mkldnn:
        pytest.skip("not run: oneDNN packs nothing on this processor")
    moved = torch.ops.mkldnn.data_ptr(given)
    ctypes.memset(moved + 4 * 512 * 512 - 4, 0x55, 4)  # the last element is another one now
    monkeypatch.setattr(Tensor, "to_dense", lambda _: weight)
    assert Arranger().blocks_of(given).owner is not given


def test_nan_and_infinity_are_passed_on(kernel: Kernel, weights: WeightsFile) -> None:
    for bad in (float("nan"), float("inf")):
        state = begin(weights)
        broken = state[0].att_kv.clone()
        broken[0, 0, 3, 3] = bad
        hidden, _ = kernel.step(1, (replace(state[0], att_kv=broken), *state[1:]))
        assert kernel.logits(hidden).isnan().any()


def test_what_does_not_fit_never_reaches_the_kernel(kernel: Kernel, weights: WeightsFile) -> None:
    state = begin(weights)
    first, rest = state[0], state[1:]
    for token in (-1, 50, 1 << 40):
        with pytest.raises(VocabularyError, match="0 to 49"):
            kernel.step(token, state)
    wrong: list[LayerState] = [
        replace(first, att_x_prev=first.att_x_prev.bfloat16()),
        replace(first, att_x_prev=first.att_x_prev[:, :32]),
        replace(first, att_kv=first.att_kv.mT[:, :, :, :8]),
        replace(first, att_kv=torch.randn(1, 3, 16, 16).mT),
        replace(first, att_kv=first.att_kv.expand(2, -1, -1, -1)),
        replace(first, ffn_x_prev=first.ffn_x_prev.to("meta")),
        replace(first, ffn_x_prev=torch.zeros(1, 96)[:, ::2]),
    ]
    for layer in wrong:
        with pytest.raises(StateError, match="the kernel expects contiguous"):
            kernel.step(1, (layer, *rest))
    with pytest.raises(StateError, match="a state of 1 layers"):
        kernel.step(1, (first,))
    with pytest.raises(StateError, match="2 tokens for 1 states"):
        kernel.steps((1, 2), (state,))
    for hidden in (torch.zeros(49), torch.zeros(48, 2).mT, torch.zeros(48).double()):
        with pytest.raises(StateError, match="hidden"):
            kernel.logits(hidden)


def test_no_streams_are_no_work(kernel: Kernel) -> None:
    hidden, states = kernel.steps((), ())
    assert (hidden.shape, states) == ((0, 48), ())
    assert kernel.logits(hidden).shape == (0, 50)


def test_what_it_does_not_compute_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "narrow.pth"
    write_random_weights(path, small_architecture(width=24, heads=3))
    given: dict[str, Any]
    for given, what in (
        ({}, "multiples of 16"),
        ({"dtype": "fp16"}, "fp16 on cpu"),
        ({"kernel": "cuda"}, "torch, native"),
    ):
        with pytest.raises(SettingsError, match=what):
            load_engine(path, cache_dir=tmp_path, **({"kernel": "native"} | given))


@pytest.mark.parametrize(
    ("compiler", "what"),
    [
        ("no-such-compiler", r"no-such-compiler \(\$CC\).*apt install gcc"),
        ("false", "ended with 1: no message.*take --kernel torch"),
        ("gcc --no-such-flag", "no-such-flag.*take --kernel torch"),
    ],
)
def test_without_a_compiler_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, what: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(SettingsError, match=what):
        library(tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_code_that_others_can_write_is_not_loaded(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(SettingsError, match="chmod 700"):
        library(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="XDG_CACHE_HOME"):
        library(tmp_path / "file")


def test_a_library_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path)
    (made,) = tmp_path.iterdir()
    first = made.stat()
    assert first.st_mode & 0o022 == 0
    library(tmp_path)
    assert made.stat().st_mtime_ns == first.st_mtime_ns
    library(tmp_path, flags=("-DANOTHER",))
    assert len(list(tmp_path.iterdir())) == 2


RACING = """
import sys
from pathlib import Path
from rwkv_runtime.native import library
print("ready", flush=True)
sys.stdin.readline()
assert library(Path(sys.argv[1])).rwkv7_step
"""


def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACING, str(tmp_path)]
    pipe = subprocess.PIPE
    racers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=300)
        assert racer.returncode == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


FORKED = """
import os, sys, torch
from rwkv_runtime import load_engine
torch.set_num_threads(1)
engine = load_engine(sys.argv[1], kernel="native", threads=2)
def said():
    output, state = engine.decode(5, engine.initial_state())
    output, _ = engine.decode(6, state)
    return engine.logits(output).numpy().tobytes()
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, said())
    os._exit(0)
os.close(writing)
with open(reading, "rb") as pipe:
    sys.exit(pipe.read() != said())
"""


def test_a_child_forked_after_loading_computes_the_same(model_path: Path) -> None:
    """As the server's workers are."""
    subprocess.run([sys.executable, "-c", FORKED, str(model_path)], check=True, timeout=300)


def test_states_of_both_kernels_have_their_own_fingerprints(model_path: Path) -> None:
    engines = [
        load_engine(model_path, kernel=kernel, strict=strict)
        for kernel in ("torch", "native")
        for strict in (False, True)
    ]
    assert len({engine.fingerprint.digest for engine in engines}) == 4
    assert dict(engines[2].fingerprint.extra)["kernel"] == f"native {REVISION}"


def test_a_single_token_is_read_as_it_is_decoded(model_path: Path) -> None:
    engine = load_engine(model_path, kernel="native")
    assert isinstance(engine, Rwkv7Engine)
    _, state = engine.prefill(torch.arange(20), engine.initial_state())
    read, decoded = engine.prefill(torch.tensor([7]), state), engine.decode(7, state)
    assert torch.equal(read[0], decoded[0])
    assert digest(([], read[1])) == digest(([], decoded[1]))


def test_the_environments_choice_of_instructions_is_in_the_strict_fingerprint(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests() -> list[bytes]:
        return [load_engine(model_path, strict=strict).fingerprint.digest for strict in (0, 1)]

    lax, strict = digests()
    for name in ("MKL_CBWR", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.setenv(name, "AVX2")
        found = digests()
        assert found[0] == lax
        assert found[1] != strict
        monkeypatch.delenv(name)
    monkeypatch.setenv("MKL_CBWR", "")
    assert digests() == [lax, strict]


def test_without_torchs_openmp_one_thread_computes_the_same(
    weights: WeightsFile, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = digest(run(kernel, begin(weights)))
    monkeypatch.setattr(torch, "__file__", os.devnull)
    alone = Kernel(weights, library())
    assert not alone._team.parallel
    assert digest(run(alone, begin(weights))) == expected
