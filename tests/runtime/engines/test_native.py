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
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rwkv_runtime import model
from rwkv_runtime.engines import load_engine
from rwkv_runtime.errors import VocabularyError
from rwkv_runtime.model import LayerState, ModelState
from rwkv_runtime.native import REVISION, Kernel, library
from rwkv_runtime.native.blocks import BLOCK, Arranger
from rwkv_runtime.native.kernel import ROWS
from rwkv_runtime.native.pairs import as_described
from rwkv_runtime.projection import can_pack, packed
from rwkv_runtime.testing import small_architecture, write_random_weights
from rwkv_runtime.weights import Architecture, WeightsFile, read_weights
from statestore.errors import SettingsError, StateError

CPU = torch.device("cpu")
X86 = platform.machine() in ("x86_64", "AMD64")
NO_PAIRS = ("-march=native", "-mno-avx512bf16")
BUILDS: dict[str, tuple[str, ...] | None] = {"native": None, "plain": ()}
if X86:
    BUILDS |= {"avx2": ("-march=x86-64-v3",), "without pairs": NO_PAIRS}
PARTS = ("att_x_prev", "att_kv", "ffn_x_prev")
TOKENS = (5, 0, 49, 5)
LONG = tuple(7 * place % 50 for place in range(61))  # no multiple of what is computed at once
CUTS: tuple[tuple[int, ...], ...] = ((), (24, 54, 57, 59), (1,), (60,), (5, 11, 30))
SHAPES = {
    "wide": small_architecture(layers=3, width=512, heads=8, vocabulary=50),
    "heads of 16, no whole blocks": small_architecture(width=48, heads=3, vocabulary=50),
    "heads of 128": small_architecture(width=256, heads=2, vocabulary=50),
    "one layer": replace(
        small_architecture(layers=1, width=64, heads=1, vocabulary=50), rate_rank=7, gate_rank=200
    ),
}
GOLDEN = {  # of REVISION, on every machine
    torch.float32: "a00f20e192cbff10d62ceba8c5a2848c34366a8ba60ca952600c959d0269fc71",
    torch.bfloat16: "91ab6ee9bf4dce2de2d1c0cb54127daf871e6485b3feced9e642f910a6581463",
}
GOLDEN_LONG = {
    torch.float32: "13baab3e2e4eb6431072ad54392fd47f4d42d1aff53301ecd5075efb8900a45c",
    torch.bfloat16: "0054aa1efb3bd8b5a7ad7d8638ef32b584fa28de0228fed71b6faa50f152e5ba",
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


def read(kernel: Kernel, state: ModelState, cuts: tuple[int, ...]) -> Run:
    """The last logits of LONG, read in pieces that end at `cuts` and at its end."""
    for piece in torch.tensor_split(torch.tensor(LONG), cuts):
        hidden, state = kernel.read(piece, state)
    return [kernel.logits(hidden)], state


def run(kernel: Kernel, state: ModelState, tokens: tuple[int, ...] = TOKENS) -> Run:
    logits = []
    for token in tokens:
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
    assert REVISION == 2, "record the digests of the new revision"
    weights = definite(SHAPES["wide"], dtype)
    kernel = Kernel(weights, library(flags=BUILDS[build]))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert digest(run(kernel, begin(weights))) == GOLDEN[dtype], "raise REVISION"
        for others in (1, 2, 3, 6) if build != "plain" else (3,):
            assert digest(run_beside(kernel, begin(weights), others)) == GOLDEN[dtype]
        whole = run(kernel, begin(weights), LONG)
        assert digest(whole) == GOLDEN_LONG[dtype]
        for cuts in CUTS if build != "plain" else CUTS[:2]:
            assert digest(read(kernel, begin(weights), cuts)) == digest(([whole[0][-1]], whole[1]))
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


@pytest.mark.parametrize("dtype", GOLDEN)
@pytest.mark.parametrize("shape", SHAPES)
def test_reading_is_decoding_bit_for_bit(shape: str, dtype: torch.dtype) -> None:
    """However a text is cut: a token has the bits that it has alone."""
    weights = definite(SHAPES[shape], dtype)
    kernel, state = Kernel(weights, library()), begin(weights)
    whole, entered = run(kernel, state, LONG), digest(([], state))
    expected = digest(([whole[0][-1]], whole[1]))
    for cuts in CUTS:
        assert digest(read(kernel, state, cuts)) == expected
    assert digest(([], state)) == entered


@pytest.mark.parametrize("dtype", GOLDEN)
def test_more_tokens_than_a_call_takes(dtype: torch.dtype) -> None:
    """The memory that it works in is bounded."""
    weights = definite(SHAPES["heads of 16, no whole blocks"], dtype)
    kernel, state = Kernel(weights, library()), begin(weights)
    tokens = torch.arange(2 * ROWS + 3) * 7 % 50
    hidden, after = kernel.read(tokens, state)
    for token in tokens:
        stepped, state = kernel.step(int(token), state)
    assert digest(([hidden], after)) == digest(([stepped], state))
    (spare,) = kernel._spare
    assert spare.numel() < ROWS * 2 * (16 * 64 + 4 * 128 + 192)


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
def test_what_is_read_is_near_the_reference(dtype: torch.dtype) -> None:
    """With a state that was not zero before."""
    weights = definite(SHAPES["wide"], dtype)
    exact = WeightsFile(SHAPES["wide"], {k: v.double() for k, v in weights.tensors.items()})
    found = read(Kernel(weights, library()), begin(weights), (30,))
    outcomes = []
    for given in (exact, weights):
        bound = model.Weights.of(given.tensors)
        hidden, state = model.forward(bound, torch.tensor([LONG]), begin(given))
        outcomes.append(([model.logits(bound, hidden[0, -1])], state))
    expected, by_torch = outcomes
    assert 0 < error(found, expected) < max(5e-6, error(by_torch, expected))


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


@pytest.mark.parametrize("build", BUILDS)
def test_products_of_bf16_are_as_they_are_described(build: str) -> None:
    """Of all sizes: what is below the normal numbers counts as zero, what is beyond is infinite."""
    made = library(flags=BUILDS[build])
    assert as_described(made, trials=400, seed=1)

    def first_then_second(count: Any, x: Any, block: Any, out: Any) -> None:
        halves = ctypes.c_uint16 * 16
        given = halves.from_address(x.value)
        turned = halves(*(given[place ^ 1] for place in range(16)))
        lies = (ctypes.c_int16 * (16 * BLOCK)).from_address(block.value)
        weights = torch.frombuffer(lies, dtype=torch.int16).view(8, BLOCK, 2)
        swapped = weights.flip(2).contiguous()
        made.rwkv7_described_sums(count, turned, ctypes.c_void_p(swapped.data_ptr()), out)

    def not_flushed(count: Any, x: Any, block: Any, out: Any) -> None:
        made.rwkv7_described_sums(count, x, block, out)
        sums = (ctypes.c_float * BLOCK).from_address(out.value)
        for place in range(BLOCK):
            sums[place] = sums[place] or 1e-40

    for other in (first_then_second, not_flushed):
        wrong = SimpleNamespace(rwkv7_sums=other, rwkv7_described_sums=made.rwkv7_described_sums)
        assert not as_described(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize(
    ("removed", "left"), [(1.5, 0.0), (1.0078125, 0.0), (1.0, 2.0**-126), (0.5, 2.0**-126)]
)
def test_a_sum_of_bf16_is_rounded_before_it_counts_as_zero(
    build: str, removed: float, left: float
) -> None:
    """The least normal number less so many times 2^-151: what rounds up to it again stays."""
    made = library(flags=BUILDS[build])
    x = torch.tensor([-removed * 2.0**-75, 2.0**-63]).bfloat16()
    block = torch.tensor([2.0**-76, 2.0**-63]).bfloat16().repeat(BLOCK)
    fed = torch.cat((x, torch.zeros(14, dtype=x.dtype)))
    for function in (made.rwkv7_sums, made.rwkv7_described_sums):
        sums = torch.empty(BLOCK)
        pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (fed, block, sums))
        function(ctypes.c_int64(2), *pointers)
        assert sums.tolist() == [left] * BLOCK


@pytest.mark.skipif(not X86, reason="other processors have no such instruction here")
def test_an_instruction_that_does_otherwise_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ctypes.CDLL] = []

    def never(made: ctypes.CDLL) -> bool:
        asked.append(made)
        return False

    monkeypatch.setattr("rwkv_runtime.native.compiler.as_described", never)
    made = library(tmp_path)
    assert len(asked) == 1
    assert made._name != asked[0]._name
    weights = definite(SHAPES["wide"], torch.bfloat16)
    assert digest(run(Kernel(weights, made), begin(weights))) == GOLDEN[torch.bfloat16]


def test_nan_and_infinity_are_passed_on(kernel: Kernel, weights: WeightsFile) -> None:
    for bad in (float("nan"), float("inf")):
        state = begin(weights)
        broken = state[0].att_kv.clone()
        broken[0, 0, 3, 3] = bad
        hidden, _ = kernel.step(1, (replace(state[0], att_kv=broken), *state[1:]))
        assert kernel.logits(hidden).isnan().any()


def test_what_torch_told_the_processor_changes_no_bit(kernel: Kernel, weights: WeightsFile) -> None:
    """Numbers below the normal ones stay what they are."""
    state = tuple(
        replace(layer, att_kv=torch.full_like(layer.att_kv, 1e-40)) for layer in begin(weights)
    )
    _, expected = run(kernel, state)
    torch.set_flush_denormal(True)
    try:
        _, found = run(kernel, state)
    finally:
        torch.set_flush_denormal(False)
    assert digest(([], found)) == digest(([], expected))


def test_what_does_not_fit_never_reaches_the_kernel(kernel: Kernel, weights: WeightsFile) -> None:
    state = begin(weights)
    first, rest = state[0], state[1:]
    for token in (-1, 50, 1 << 40):
        with pytest.raises(VocabularyError, match="0 to 49"):
            kernel.step(token, state)
        with pytest.raises(VocabularyError, match="0 to 49"):
            kernel.read(torch.tensor([1, token, 2]), state)
    with pytest.raises(VocabularyError, match="nothing to read"):
        kernel.read(torch.tensor([], dtype=torch.int64), state)
    for tokens in (torch.tensor([[1]]), torch.tensor([1.0]), torch.tensor([1], dtype=torch.int32)):
        with pytest.raises(VocabularyError, match="one row of int64"):
            kernel.read(tokens, state)
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
        with pytest.raises(StateError, match="the kernel expects contiguous"):
            kernel.read(torch.tensor([1, 2]), (layer, *rest))
    with pytest.raises(StateError, match="a state of 1 layers"):
        kernel.step(1, (first,))
    with pytest.raises(StateError, match="2 tokens for 1 states"):
        kernel.steps((1, 2), (state,))
    for hidden in (torch.zeros(49), torch.zeros(48, 2).mT, torch.zeros(48).double()):
        with pytest.raises(StateError, match="hidden"):
            kernel.logits(hidden)


@pytest.mark.parametrize("dtype", GOLDEN)
@pytest.mark.parametrize("others", [0, 1, 6])
def test_a_stream_that_goes_on_in_place_has_the_bits_of_steps(
    dtype: torch.dtype, others: int
) -> None:
    """For fewer streams than threads and more; what is handed out is written to no more."""
    weights = definite(SHAPES["wide"], dtype)
    kernel, state = Kernel(weights, library()), begin(weights)
    entered, streams = digest(([], state)), [kernel.hold(state) for _ in range(others + 1)]
    logits, half = [], None
    for token in TOKENS:
        beside = [(token + 1 + other) % 50 for other in range(others)]
        logits.append(kernel.logits(kernel.go_on([*beside, token], streams))[-1])
        half = half or streams[-1].state()
    assert digest((logits, streams[-1].state())) == GOLDEN[dtype]
    assert digest(([], half)) == digest(([], run(kernel, state, TOKENS[:1])[1]))
    assert digest(([], state)) == entered


def test_streams_that_cannot_go_on_stay_as_they_are(kernel: Kernel, weights: WeightsFile) -> None:
    state = run(kernel, begin(weights))[1]
    one, other = kernel.hold(state), kernel.hold(state)
    with pytest.raises(VocabularyError, match="0 to 49"):
        kernel.go_on((1, 50), (one, other))
    with pytest.raises(StateError, match="2 tokens for 1 streams"):
        kernel.go_on((1, 2), (one, one))
    with pytest.raises(StateError, match="1 tokens for 2 streams"):
        kernel.go_on((1,), (one, other))
    with pytest.raises(StateError, match="another kernel"):
        Kernel(weights, library()).go_on((1,), (one,))
    with pytest.raises(StateError, match="a state of 1 layers"):
        kernel.hold(state[:1])
    for stream in (one, other):
        assert digest(([], stream.state())) == digest(([], state))


def test_no_streams_are_no_work(kernel: Kernel) -> None:
    hidden, states = kernel.steps((), ())
    assert (hidden.shape, states) == ((0, 48), ())
    assert kernel.go_on((), ()).shape == (0, 48)
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


def test_without_a_compiler_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(SettingsError, match=r"kernel native: .*\(\$CC\).*take --kernel torch"):
        library(tmp_path / "cache")


def test_a_library_is_compiled_once(tmp_path: Path) -> None:
    made = library(tmp_path)
    names = set(tmp_path.iterdir())
    assert {Path(made._name)} == names == {Path(library(tmp_path)._name)}


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
    assert len({engine.fingerprint.digest for engine in engines[:3]}) == 3
    assert dict(engines[2].fingerprint.extra)["kernel"] == f"native {REVISION}"


def test_nothing_of_the_machine_is_in_the_kernels_strict_fingerprint(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nothing of it decides bits; rounding is PyTorch's, and stays with the machine."""

    def digest_of(**given: Any) -> bytes:
        return load_engine(model_path, kernel="native", **given).fingerprint.digest

    lax = digest_of()
    for threads in (None, 1, 2):
        assert digest_of(strict=True, threads=threads) == lax
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert digest_of(strict=True) == lax
    strict = [digest_of(strict=True, lossy="int8", threads=threads) for threads in (1, 2)]
    assert len({digest_of(lossy="int8"), *strict}) == 3


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_was_generated_has_the_state_of_what_was_read(model_path: Path, dtype: str) -> None:
    """So has any cut of a text: chunks decide where states are kept, not what they are."""
    engine = load_engine(model_path, dtype=dtype, kernel="native")  # type: ignore[arg-type]
    tokens = torch.arange(40) * 11 % 256
    read = engine.prefill(tokens, engine.initial_state())
    for cut in (1, 17, 39):
        _, state = engine.prefill(tokens[:cut], engine.initial_state())
        for token in tokens[cut:].tolist():
            output, state = engine.decode(token, state)
        assert torch.equal(read[0], output)
        assert digest(([], read[1])) == digest(([], state))


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
