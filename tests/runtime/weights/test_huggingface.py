"""Weights in Hugging Face's form are the same model; other models are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from rwkv_runtime.engines import KernelName, load_engine
from rwkv_runtime.errors import WeightsError
from rwkv_runtime.testing import small_architecture, write_random_weights
from statestore.layouts import from_fla, to_fla
from tests.runtime.weights.fla_model import (
    CACHED,
    GOLDEN,
    LAYERS,
    TOKENS,
    Tensors,
    in_their_form,
    write_model,
)
from tests.runtime.workers.commanded import run

CONFIG: dict[str, Any] = {
    "model_type": "rwkv7",
    "norm_eps": 1e-5,
    "norm_first": True,
    "hidden_act": "sqrelu",
    "attn": None,
    "tie_word_embeddings": False,
}


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "ours.safetensors"
    write_random_weights(path, small_architecture(layers=3))
    return path


@pytest.fixture
def theirs(tmp_path: Path, ours: Path) -> Tensors:
    return in_their_form(safetensors.torch.load_file(ours), layers=3)


@pytest.fixture
def directory(tmp_path: Path, theirs: Tensors) -> Path:
    """The model in two shards."""
    path = tmp_path / "theirs"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    names = sorted(theirs)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, members in shards.items():
        safetensors.torch.save_file({name: theirs[name] for name in members}, path / shard)
    places = {name: shard for shard, members in shards.items() for name in members}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return path


def logits_of(path: Path) -> Tensor:
    engine = load_engine(path, threads=1, cache_dir=path.parent)
    output, _ = engine.prefill(torch.arange(40), engine.initial_state())
    return engine.logits(output)


def whole(directory: Path, theirs: Tensors) -> Path:
    (directory / "model.safetensors.index.json").unlink()
    safetensors.torch.save_file(theirs, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("kernel", ["torch", "native"])
def test_it_is_what_flash_linear_attention_computes(tmp_path: Path, kernel: KernelName) -> None:
    """Its logits and its cache, recorded: the names, the transpositions, and each layer's state."""
    golden = safetensors.torch.load_file(GOLDEN)
    engine = load_engine(write_model(tmp_path), threads=1, kernel=kernel, cache_dir=tmp_path)
    output, state = engine.prefill(torch.tensor(TOKENS), engine.initial_state())
    assert_near(engine.logits(output), golden["logits"])
    cache = to_fla(engine.to_stored(state, None))
    assert len(cache) == LAYERS
    for layer, found in enumerate(cache):
        for name in CACHED:
            assert_near(torch.tensor(found[name]), golden[f"{layer}.{name}"])


def test_its_cache_is_gone_on_from(tmp_path: Path) -> None:
    """As a state of this engine: what follows is what follows the same tokens here."""
    golden = safetensors.torch.load_file(GOLDEN)
    engine = load_engine(write_model(tmp_path), threads=1, cache_dir=tmp_path)
    cache = [
        {name: golden[f"{layer}.{name}"].numpy() for name in CACHED} for layer in range(LAYERS)
    ]
    theirs, _ = engine.from_stored(from_fla(engine.schema, cache))
    _, ours = engine.prefill(torch.tensor(TOKENS), engine.initial_state())
    more = torch.arange(20)
    outputs = [engine.prefill(more, state)[0] for state in (theirs, ours)]
    assert_near(engine.logits(outputs[0]), engine.logits(outputs[1]))


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_a_directory_is_asked_like_a_file(ours: Path, directory: Path, tmp_path: Path) -> None:
    """By the commands, through one store: the same numbers, under a fingerprint of their own."""
    document = tmp_path / "document.txt"
    document.write_text("A text of some length. " * 20, encoding="utf-8")
    common = ["--store", str(tmp_path / "states"), "--document", str(document), "--json"]
    rows = []
    for model in (ours, directory, directory):
        done = run("ask", "--model", str(model), *common, "--question", "One?")
        assert done.returncode == 0, done.stderr
        rows += json.loads(done.stdout)["questions"]
    assert [row["cached_tokens"] for row in rows] == [0, 0, 460]
    assert len({(row["answer"], row["logits_sha256"]) for row in rows}) == 1


def test_shards_give_the_same_bits(ours: Path, directory: Path) -> None:
    assert torch.equal(logits_of(directory), logits_of(ours))


def test_one_file_gives_the_same_bits(ours: Path, directory: Path, theirs: Tensors) -> None:
    whole(directory, theirs)
    expected = logits_of(ours)
    assert torch.equal(logits_of(directory), expected)
    assert torch.equal(logits_of(directory / "model.safetensors"), expected)


def test_every_shard_is_in_the_fingerprint(directory: Path, theirs: Tensors) -> None:
    before = load_engine(directory, cache_dir=directory.parent).fingerprint
    shard = safetensors.torch.load_file(directory / "model-2.safetensors")
    name = next(iter(shard))
    shard[name][..., 0] += 1
    safetensors.torch.save_file(shard, directory / "model-2.safetensors")
    assert load_engine(directory, cache_dir=directory.parent).fingerprint != before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "llama"),
        ("norm_eps", 1e-6),
        ("attn", {"layers": [1], "num_heads": 2}),
        ("tie_word_embeddings", True),
        ("hidden_act", "silu"),
        ("num_hidden_layers", 2),
        ("hidden_size", 256),
        ("vocab_size", 300),
        ("head_dim", 32),
        ("num_heads", 4.5),
    ],
)
def test_another_model_is_refused_by_what_differs(
    directory: Path, theirs: Tensors, name: str, value: object
) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG | {name: value}))
    with pytest.raises(WeightsError, match=name):
        load_engine(directory)
    whole(directory, theirs)
    with pytest.raises(WeightsError, match=name):
        load_engine(directory / "model.safetensors")


def test_files_that_replace_those_that_were_hashed_are_not_read(
    directory: Path, theirs: Tensors, tmp_path: Path
) -> None:
    """Other weights would go under the digest of the shards, which lie there as they did."""
    other = {name: tensor + 1 for name, tensor in theirs.items()}

    def arrive(_done: int, _total: int) -> None:
        safetensors.torch.save_file(other, directory / "model.safetensors")

    with pytest.raises(WeightsError, match="changed while they were being read"):
        load_engine(directory, progress=arrive, cache_dir=tmp_path)


def test_a_number_of_heads_beside_their_size_means_nothing(directory: Path, ours: Path) -> None:
    """As the models have it that flash-linear-attention's script has converted."""
    (directory / "config.json").write_text(json.dumps(CONFIG | {"head_dim": 64, "num_heads": 32}))
    assert torch.equal(logits_of(directory), logits_of(ours))


def test_the_six_mixes_may_be_one_tensor(ours: Path, directory: Path, theirs: Tensors) -> None:
    """As flash-linear-attention wrote them at first."""
    for layer in range(3):
        mixes = [theirs.pop(f"model.layers.{layer}.attn.x_{mix}").flatten() for mix in "rwkvag"]
        theirs[f"model.layers.{layer}.attn.x_x"] = torch.stack(mixes)
    whole(directory, theirs)
    assert torch.equal(logits_of(directory), logits_of(ours))


def test_the_six_mixes_in_a_file_of_the_oldest_format(
    ours: Path, tmp_path: Path, theirs: Tensors
) -> None:
    """It is read whole, and its tensors are given away one by one."""
    for layer in range(3):
        mixes = [theirs.pop(f"model.layers.{layer}.attn.x_{mix}").flatten() for mix in "rwkvag"]
        theirs[f"model.layers.{layer}.attn.x_x"] = torch.stack(mixes)
    torch.save(theirs, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(logits_of(tmp_path / "old.pth"), logits_of(ours))


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"attn.x_x": torch.zeros(6, 128)}, "are one tensor, blocks.1.att.x_r"),
        ({"attn.w1": torch.zeros(128, 32)}, "are one tensor, blocks.1.att.w1"),
        ({"attn.x_x": torch.zeros(5, 128)}, r"x_x has shape \[5, 128\], expected 6 rows"),
    ],
)
def test_two_names_for_one_tensor_are_refused(
    directory: Path, theirs: Tensors, more: Tensors, what: str
) -> None:
    named = {f"model.layers.1.{name}": tensor for name, tensor in more.items()}
    whole(directory, theirs | named)
    with pytest.raises(WeightsError, match=what):
        load_engine(directory)


def test_heads_that_are_normed_otherwise_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ours.safetensors"
    write_random_weights(path, small_architecture(layers=2, heads=4))
    theirs = in_their_form(safetensors.torch.load_file(path), layers=2)
    safetensors.torch.save_file(theirs, tmp_path / "theirs.safetensors")
    with pytest.raises(WeightsError, match="heads of 32"):
        load_engine(tmp_path / "theirs.safetensors")


def test_a_name_that_is_not_known_is_refused(directory: Path, theirs: Tensors) -> None:
    whole(directory, theirs | {"model.layers.1.attn.surprise.weight": torch.zeros(2)})
    with pytest.raises(WeightsError, match="surprise"):
        load_engine(directory)


def unlink(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(text)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (unlink("config.json"), "config.json"),
        (write("config.json", "{"), "damaged"),
        (write("config.json", "[1]"), "JSON object"),
        (unlink(INDEX), INDEX),
        (write(INDEX, "{}"), "names no weights files"),
        (write(INDEX, '{"weight_map": {"a": "../elsewhere"}}'), "names no weights files"),
        (write(INDEX, '{"weight_map": {"a": ["b"]}}'), "names no weights files"),
        (write(INDEX, '{"weight_map": {"a": 1, "b": "c"}}'), "names no weights files"),
        (write(INDEX, '{"weight_map": {"a": "b\\u0000"}}'), "names no weights files"),
        (unlink("model-2.safetensors"), "model-2.safetensors"),
    ],
)
def test_a_directory_that_is_not_whole_is_refused(
    directory: Path, spoil: Callable[[Path], object], what: str
) -> None:
    spoil(directory)
    with pytest.raises(WeightsError, match=what):
        load_engine(directory)


def test_a_tensor_in_two_shards_is_refused(directory: Path) -> None:
    first = safetensors.torch.load_file(directory / "model-1.safetensors")
    second = safetensors.torch.load_file(directory / "model-2.safetensors")
    name = next(iter(first))
    safetensors.torch.save_file(second | {name: first[name]}, directory / "model-2.safetensors")
    with pytest.raises(WeightsError, match="two of its files"):
        load_engine(directory)
