"""Every RWKV version through the `rwkv` package: the same answers as the package, exact from a
store, and what cannot be stored refused by name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rwkv_runtime import Runtime
from rwkv_runtime.engines.adapter import PackageEngine, load_package_engine
from rwkv_runtime.engines.package import load_model, package_switches
from rwkv_runtime.engines.strategy import Strategy
from rwkv_runtime.errors import DeviceError, VocabularyError, WeightsError
from rwkv_runtime.testing import small_architecture, write_random_weights
from rwkv_runtime.weights.versions import dimensions_of
from statestore import open_store
from statestore.keys import ChunkRule
from tests.checkout import ROOT
from tests.runtime.weights.old_versions import VERSIONS, write_old_weights
from tests.runtime.workers.commanded import run

ALL = (*VERSIONS, "7", "7a")
RULE = ChunkRule(chunk=32, min_chunk=8)
DOCUMENT = [(7 * i * i + i) % 256 for i in range(150)]
QUESTION = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]


def weights_of(version: str, directory: Path) -> Path:
    path = directory / f"v{version}.pth"
    if version == "7":
        write_random_weights(path)
    elif version == "7a":
        write_deep_weights(path)
    else:
        write_old_weights(path, version)
    return path


def write_deep_weights(path: Path, s0: float = 1.0, s1: float = 0.1) -> None:
    """A version 7 with DeepEmbed: every token has a matrix in each layer, which scales the channel
    mixing.
    """
    made = small_architecture()
    write_random_weights(path, made)
    tensors = torch.load(path)
    for layer in range(made.layers):
        ffn = f"blocks.{layer}.ffn"
        tensors |= {
            f"{ffn}.s_emb.weight": torch.randn(made.vocabulary, 32 * 32),
            f"{ffn}.s_emb_x.weight": torch.randn(32 * 32, made.width) / made.width**0.5,
            f"{ffn}.s0": torch.full((made.ffn_width,), s0),
            f"{ffn}.s1": s1 * torch.randn(made.width, 32) / made.width**0.5,
            f"{ffn}.s2": torch.randn(32, made.ffn_width) / 32**0.5,
        }
    torch.save(tensors, path)


def engine_of(path: Path, strategy: str = "cpu fp32") -> PackageEngine:
    return load_package_engine(path, strategy, rule=RULE, threads=1, cache_dir=path.parent)


@pytest.mark.parametrize("version", ALL)
def test_chunks_give_what_the_package_gives(version: str, tmp_path: Path) -> None:
    path = weights_of(version, tmp_path)
    engine = engine_of(path)
    assert engine.fingerprint.architecture == f"rwkv{version}"
    plain = load_model(str(path.with_suffix("")), "cpu fp32", version)
    expected, theirs = plain.forward(DOCUMENT[:64], None)
    state = engine.initial_state()
    for begin in (0, 32):
        output, state = engine.prefill(torch.tensor(DOCUMENT[begin : begin + 32]), state)
    torch.testing.assert_close(engine.logits(output), expected.float(), rtol=1e-4, atol=1e-4)
    for ours, other in zip(state, theirs, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("version", "strategy"),
    [*((version, "cpu fp32") for version in ALL), ("4", "cpu bf16"), ("7", "cpu bf16")],
)
def test_an_answer_from_the_store_is_the_fresh_one(
    version: str, strategy: str, tmp_path: Path
) -> None:
    path = weights_of(version, tmp_path)
    with open_store((tmp_path / "store").as_uri()) as store:
        with Runtime(engine_of(path, strategy), store) as runtime:
            cold = runtime.prefill([DOCUMENT, QUESTION])
            tokens = [new.token for new in runtime.continue_from(cold, max_tokens=8)]
        assert cold.cached_tokens == 0
        with Runtime(engine_of(path, strategy), store) as runtime:
            warm = runtime.prefill([DOCUMENT, QUESTION])
            again = [new.token for new in runtime.continue_from(warm, max_tokens=8)]
    assert warm.cached_tokens >= len(DOCUMENT)
    assert torch.equal(warm.logits, cold.logits)
    assert all(torch.equal(a, b) for a, b in zip(warm.state, cold.state, strict=True))
    assert again == tokens


ELSEWHERE = """
import sys, safetensors.torch
from pathlib import Path
from rwkv_runtime import Runtime
from statestore import open_store
from tests.runtime.engines.test_adapter import DOCUMENT, QUESTION, engine_of
path, url, target = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with open_store(url) as store, Runtime(engine_of(path), store) as runtime:
    read = runtime.prefill([DOCUMENT, QUESTION])
safetensors.torch.save_file({"logits": read.logits}, target)
print(read.cached_tokens)
"""


@pytest.mark.parametrize("version", ["6", "7"])
def test_another_process_takes_the_state_up(version: str, tmp_path: Path) -> None:
    path = weights_of(version, tmp_path)
    url = (tmp_path / "store").as_uri()
    runs = []
    for number in range(2):
        target = tmp_path / f"{number}.safetensors"
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, path, url, target],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        runs.append((int(done.stdout), safetensors.torch.load_file(target)["logits"]))
    (cold_cached, cold), (warm_cached, warm) = runs
    assert (cold_cached, warm_cached) == (0, len(DOCUMENT) + len(QUESTION)) or (
        cold_cached == 0 and warm_cached >= len(DOCUMENT)
    )
    assert torch.equal(cold, warm)


def test_ask_begins_warm_in_a_second_process(tmp_path: Path) -> None:
    """As somebody does it who has a version 6 model and two terminals."""
    path = weights_of("6", tmp_path)
    document = tmp_path / "document.txt"
    document.write_text("Ada wrote it in the spring of 1843. " * 12, encoding="utf-8")
    options = ["--strategy", "cpu fp32", "--threads", "1", "--max-tokens", "8", "--json"]
    rows = []
    for _ in range(2):
        done = run(
            *("ask", "--model", str(path), "--store", str(tmp_path / "states"), *options),
            *("--document", str(document), "--question", "Who wrote it?"),
        )
        assert done.returncode == 0, done.stderr
        rows += json.loads(done.stdout)["questions"]
    cold, warm = rows
    assert (cold["cached_tokens"], warm["cached_tokens"]) == (0, document.stat().st_size)
    assert warm["computed_tokens"] < cold["computed_tokens"] - warm["cached_tokens"] + 1
    assert (warm["answer"], warm["logits_sha256"]) == (cold["answer"], cold["logits_sha256"])


@pytest.mark.parametrize("version", ALL)
def test_a_file_overwritten_later_changes_no_model(version: str, tmp_path: Path) -> None:
    path = weights_of(version, tmp_path)
    engine = engine_of(path)
    expected, _ = engine.prefill(torch.tensor(QUESTION), engine.initial_state())
    with path.open("r+b") as file:  # in place: a mapping would see it
        file.write(bytes(path.stat().st_size))
    found, _ = engine.prefill(torch.tensor(QUESTION), engine.initial_state())
    assert torch.equal(found, expected)


@pytest.mark.parametrize("version", ALL)
def test_a_state_is_never_written_to(version: str, tmp_path: Path) -> None:
    engine = engine_of(weights_of(version, tmp_path))
    _, state = engine.prefill(torch.tensor(DOCUMENT[:32]), engine.initial_state())
    before = [tensor.clone() for tensor in state]
    first, _ = engine.prefill(torch.tensor(DOCUMENT[32:64]), state)
    engine.decode(5, state)
    second, _ = engine.prefill(torch.tensor(DOCUMENT[32:64]), state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
    assert torch.equal(first, second)
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in state)


@pytest.mark.parametrize("version", ["5", "5.1", "5.2", "6"])
def test_a_tuned_state_in_the_file_is_where_the_model_begins(version: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.pth"
    write_old_weights(path, version, tuned=True)
    engine = engine_of(path)
    output, _ = engine.prefill(torch.tensor(DOCUMENT[:20]), engine.initial_state())
    plain = load_model(str(path.with_suffix("")), "cpu fp32", version)
    expected, _ = plain.forward(DOCUMENT[:20], None)
    assert torch.equal(output, expected.float())


def test_deepembed_is_computed_and_not_passed_over(tmp_path: Path) -> None:
    """With nothing in its factors but ones it is the plain model; with others it is not."""
    plain, ones, other = (tmp_path / name for name in ("v7.pth", "ones.pth", "other.pth"))
    write_random_weights(plain)
    write_deep_weights(ones, s1=0.0)
    write_deep_weights(other)
    logits = []
    for path in (plain, ones, other):
        engine = engine_of(path)
        output, _ = engine.prefill(torch.tensor(DOCUMENT[:20]), engine.initial_state())
        logits.append(engine.logits(output))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    assert (logits[0] - logits[2]).abs().max() > 0.01


def test_version_4_begins_with_nothing_seen(tmp_path: Path) -> None:
    engine = engine_of(weights_of("4", tmp_path))
    assert all(torch.all(tensor == -1e30) for tensor in engine.initial_state()[3::5])


def test_versions_and_dtypes_live_side_by_side(tmp_path: Path) -> None:
    seven = weights_of("7", tmp_path)
    alone = engine_of(seven).prefill(torch.tensor(QUESTION), engine_of(seven).initial_state())[0]
    engine = engine_of(seven)
    others = [engine_of(weights_of("6", tmp_path)), engine_of(seven, "cpu bf16")]
    for other in others:
        other.prefill(torch.tensor(QUESTION), other.initial_state())
    assert engine.initial_state()[0].dtype == torch.float32
    assert torch.equal(engine.prefill(torch.tensor(QUESTION), engine.initial_state())[0], alone)


def test_what_decides_bits_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = weights_of("6", tmp_path)
    digests = {
        engine_of(path, strategy).fingerprint.digest
        for strategy in ("cpu fp32", "cpu bf16", "cpu fp32i8", "cpu fp32 *1 -> cpu bf16")
    }
    assert len(digests) == 4


def test_switches_of_the_process_are_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights_of("6", tmp_path)
    digests = {engine_of(path).fingerprint.digest}
    strict = load_package_engine(path, rule=RULE, strict=True, threads=1, cache_dir=tmp_path)
    assert {"threads", "torch", "cpu"} <= dict(strict.fingerprint.extra).keys()
    torch.set_float32_matmul_precision("medium")
    try:
        digests.add(engine_of(path).fingerprint.digest)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len({*digests, strict.fingerprint.digest}) == 3
    monkeypatch.setenv("RWKV_DML_ON", "1")  # such a machine is not at hand
    assert package_switches() == (("RWKV_DML_ON", "1"),)


@pytest.mark.parametrize("version", ["4", "6", "7"])
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("blocks.1.ffn.key.weight", None),  # asked for as it computes
        ("blocks.0.ln0.weight", None),  # and as it loads
        ("blocks.1.ffn.key.weight", lambda tensor: tensor[:-1]),
        ("blocks.1.ffn.value.weight", lambda tensor: tensor[None]),
        ("blocks.0.ln1.weight", lambda _: torch.tensor(1.0)),
    ],
)
def test_tensors_that_do_not_fit_are_found_at_load(
    version: str, name: str, spoil: Callable[[torch.Tensor], torch.Tensor] | None, tmp_path: Path
) -> None:
    """And not by the first request; and it is the file's fault, not the strategy's."""
    path = weights_of(version, tmp_path)
    tensors = torch.load(path)
    value = tensors.pop(name)
    if spoil is not None:
        tensors[name] = spoil(value)
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match=r"v.\.pth: the rwkv package cannot compute with it"):
        engine_of(path)


@pytest.mark.parametrize("version", ["4", "7"])
@pytest.mark.parametrize(
    ("name", "spoil", "what"),
    [
        ("head.weight", lambda tensor: tensor[:-1], r"head.weight has shape \[255, 128\]"),
        ("emb.weight", lambda tensor: tensor[:-1], r"head.weight has shape \[256, 128\]"),
        ("emb.weight", lambda tensor: tensor.to(torch.int32), "emb.weight holds torch.int32"),
        ("ln_out.bias", lambda tensor: tensor.to(torch.complex64), "ln_out.bias holds torch.comp"),
    ],
)
def test_what_the_package_would_compute_with_all_the_same_is_refused(
    version: str,
    name: str,
    spoil: Callable[[torch.Tensor], torch.Tensor],
    what: str,
    tmp_path: Path,
) -> None:
    path = weights_of(version, tmp_path)
    tensors = torch.load(path)
    tensors[name] = spoil(tensors[name])
    torch.save(tensors, path)
    with pytest.raises(WeightsError, match=what):
        engine_of(path)


def test_layers_of_several_dtypes_are_stored_as_they_are(tmp_path: Path) -> None:
    engine = engine_of(weights_of("6", tmp_path), "cpu fp32 *1 -> cpu bf16")
    output, state = engine.prefill(torch.tensor(QUESTION), engine.initial_state())
    back, kept = engine.from_stored(engine.to_stored(state, output))
    assert [tensor.dtype for tensor in back] == [tensor.dtype for tensor in state]
    assert all(torch.equal(a, b) for a, b in zip(back, state, strict=True))
    assert kept is not None
    assert torch.equal(kept, output)


@pytest.mark.parametrize("seven", [False, True])
@pytest.mark.parametrize(
    "written",
    [
        *(
            "",
            "cpu",
            "fp32",
            "fp32 cpu",
            "tpu fp32",
            "cpu int4",
            "cpu fp64",
            "CPU FP32",
            "cpu,fp32",
        ),
        *("cpu fp32 ->", "-> cpu fp32", "cpu fp32 *a", "cpu fp32 *-3", "cpu fp32 *1 more"),
        *("cpu fp32i4", "cpu fp16i3"),  # the package takes it, and computes in fp16
    ],
)
def test_a_strategy_without_meaning_is_refused(written: str, seven: bool) -> None:
    with pytest.raises(DeviceError, match="is no device and dtype") as caught:
        Strategy.of(written, seven=seven)
    assert repr(written) in str(caught.value)


@pytest.mark.parametrize("written", ["cpu fp32i8", "cpu fp32 *1 -> cpu bf16", "mps fp32"])
def test_a_strategy_of_older_versions_is_refused_for_seven(written: str) -> None:
    with pytest.raises(DeviceError, match="for RWKV-7"):
        Strategy.of(written, seven=True)


@pytest.mark.parametrize(
    "written",
    ["cuda fp16", "cuda:1 bf16", "cuda fp16i8 *20+", "cuda fp16 *10 -> cpu fp32", "mps fp32"],
)
def test_a_device_that_is_not_there_is_named(written: str) -> None:
    device = torch.device(written.split(maxsplit=1)[0])
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        with pytest.raises(DeviceError, match=f"{device} is not to be had here"):
            Strategy.of(written, seven=False)
    else:
        assert Strategy.of(written, seven=False).device == device.type


def test_a_part_that_is_left_no_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="the rwkv package refuses it"):
        engine_of(weights_of("6", tmp_path), "cpu fp32 *0 -> cpu bf16")


def test_spaces_in_a_strategy_mean_nothing(tmp_path: Path) -> None:
    path = weights_of("6", tmp_path)
    tidy = engine_of(path, "cpu fp32 *1 -> cpu bf16").fingerprint
    assert engine_of(path, " cpu  fp32 *1->cpu\tbf16\n").fingerprint == tidy


@pytest.mark.skipif("CUDA_HOME" in os.environ, reason="the package could compile its kernels here")
def test_a_package_that_cannot_be_loaded_as_it_is_told_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights_of("6", tmp_path)
    monkeypatch.setenv("RWKV_CUDA_ON", "1")
    with pytest.raises(DeviceError, match=r"cannot be loaded here \(RWKV_CUDA_ON=1\)"):
        engine_of(path)


def test_the_package_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    def settings() -> list[object]:
        names = ("RWKV_V7_ON", "RWKV_DE_VERSION", "RWKV_JIT_ON", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")
        flags = (torch.backends.cudnn.benchmark, torch.backends.cuda.matmul.allow_tf32)
        return [*(os.environ.get(name) for name in names), *flags]

    before = settings()
    engine_of(weights_of("6", tmp_path))
    assert settings() == before


def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    engine = engine_of(weights_of("5", tmp_path))
    with pytest.raises(VocabularyError, match="300"):
        engine.prefill(torch.tensor([1, 300]), engine.initial_state())


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            {"blocks.0.ffn.s_emb.weight": (8, 4), "blocks.0.qkv.k_emb.weight": (8, 4)},
            "RWKV-7b .* grows",
        ),
        (
            {"blocks.0.ffn.enn.weight": (8, 4), "blocks.0.qkv.ennk.weight": (8, 4)},
            "hybrid of RWKV-8 .* grows",
        ),
        ({"blocks.0.att.r_k": (1, 4), "blocks.0.ffn.enn.weight": (8, 4)}, "RWKV-8, which no"),
        ({"emb.weight": (8, 4), "blocks.0.attn.q.weight": (4, 4)}, "grows"),
        (
            {"blocks.0.att.time_decay": (4,), "blocks.1.tiny_q.weight": (4, 4)},
            "tiny attention: .* grows",
        ),
        ({"blocks.0.att.r_k": (1, 4), "blocks.0.att.key.lora_A": (2, 4)}, "an adapter: merge it"),
        ({"model.layers.0.attn.r_k": (1, 4)}, "Hugging Face"),
        ({"something": (3,)}, "expected the tensor names"),
        ({"emb.weight": (2, 2), "blocks.99999.att.r_k": (1, 4)}, "expected the tensor names"),
        (
            {"emb.weight": (2, 2), "blocks.0.att.r_k": (), "blocks.0.att.key.weight": (2, 2)},
            "0 heads",
        ),
        ({"blocks.0.att.r_k": (1, 4)}, "emb.weight is missing"),
    ],
)
def test_what_has_no_constant_state_is_refused_by_name(
    names: dict[str, tuple[int, ...]], what: str
) -> None:
    with pytest.raises(WeightsError, match=what):
        dimensions_of(Path("a.pth"), names)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_random_weights(path)
    with pytest.raises(WeightsError, match=r"\.pth"):
        engine_of(path)
