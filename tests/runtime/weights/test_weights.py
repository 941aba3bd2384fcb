"""Weights files: both formats read alike, wrong ones are refused with what was found."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rwkv_runtime.errors import WeightsError
from rwkv_runtime.testing import SHAPE_0B1, small_architecture, write_random_weights
from rwkv_runtime.weights import Architecture, infer, read_weights

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


def read(path: Path, dtype: torch.dtype = torch.float32) -> Tensors:
    return dict(read_weights(path, dtype, CPU).tensors)


@pytest.fixture
def tensors(tmp_path: Path) -> Tensors:
    write_random_weights(tmp_path / "source.pth", small_architecture(width=64, heads=1))
    loaded: Tensors = torch.load(tmp_path / "source.pth", weights_only=True)
    return loaded


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[object], str]:
    """Saves an object as a .pth file and returns what reading it says."""

    def save_and_read(content: object) -> str:
        path = tmp_path / "wrong.pth"
        torch.save(content, path)
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        return str(caught.value)

    return save_and_read


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors", "no suffix"])
@pytest.mark.parametrize(
    "architecture",
    [
        small_architecture(),
        small_architecture(layers=1, width=64, heads=1, vocabulary=1000),
        small_architecture(layers=4, width=192, heads=3, vocabulary=300),
    ],
    ids=["2x128", "1x64", "4x192"],
)
def test_dimensions_and_values_come_back(
    tmp_path: Path, name: str, architecture: Architecture
) -> None:
    write_random_weights(tmp_path / name, architecture, seed=3)
    found = read_weights(tmp_path / name, torch.float32, CPU)
    assert found.architecture == architecture
    write_random_weights(tmp_path / "again.pth", architecture, seed=3)
    saved = torch.load(tmp_path / "again.pth", weights_only=True)
    assert found.tensors.keys() == saved.keys()
    assert all(torch.equal(found.tensors[name], saved[name]) for name in saved)


@given(
    layers=st.integers(1, 40),
    heads=st.integers(1, 70),
    head_size=st.sampled_from([32, 64, 128]),
    vocabulary=st.integers(1, 200_000),
    ranks=st.tuples(*[st.integers(1, 512)] * 4),
)
def test_any_dimensions_are_inferred(
    layers: int, heads: int, head_size: int, vocabulary: int, ranks: tuple[int, int, int, int]
) -> None:
    architecture = Architecture(
        layers=layers,
        width=heads * head_size,
        vocabulary=vocabulary,
        heads=heads,
        head_size=head_size,
        decay_rank=ranks[0],
        rate_rank=ranks[1],
        value_rank=ranks[2] if layers > 1 else 0,
        gate_rank=ranks[3],
        ffn_width=4 * heads * head_size,
    )
    assert infer(Path("any"), architecture.shapes()) == architecture


def test_the_official_shape_has_the_official_size() -> None:
    count = sum(torch.Size(shape).numel() for shape in SHAPE_0B1.shapes().values())
    assert (
        count == 191_034_624
    )  # as published for RWKV-7 World 0.1B, without block 0's unused v0 to v2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tensors_are_copies_of_their_own_in_the_wanted_dtype(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    path = tmp_path / "model.pth"
    write_random_weights(path, dtype=dtype)
    found = read(path, dtype)
    before = {name: tensor.clone() for name, tensor in found.items()}
    size = path.stat().st_size
    with path.open("r+b") as file:  # in place: a mapping would show it
        file.write(b"\xff" * size)
    assert all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in found.values())
    assert all(torch.equal(found[name], before[name]) for name in found)


def test_vectors_may_have_leading_ones_and_block_0_may_have_v(
    tmp_path: Path, tensors: Tensors
) -> None:
    expected = dict(tensors)
    official = {
        name: tensor[None, None] if tensor.dim() == 1 and ".att." in name else tensor
        for name, tensor in tensors.items()
    }
    for name in ("v0", "v1", "v2"):
        official[f"blocks.0.att.{name}"] = official[f"blocks.1.att.{name}"]
    torch.save(official, tmp_path / "official.pth")
    found = read(tmp_path / "official.pth")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_files_from_before_the_zip_format_are_read(tmp_path: Path, tensors: Tensors) -> None:
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "old.pth").keys() == tensors.keys()


def test_missing_tensors_are_named(refused: Callable[[object], str], tensors: Tensors) -> None:
    for name in list(tensors):
        some = {other: tensor for other, tensor in tensors.items() if other != name}
        message = refused(some)
        assert name in message or "r_k" in name, message


def test_misshapen_tensors_are_named(refused: Callable[[object], str], tensors: Tensors) -> None:
    for name in ("blocks.1.ffn.value.weight", "blocks.1.att.w2", "ln_out.bias", "blocks.0.att.x_r"):
        message = refused(tensors | {name: torch.zeros(7, 3)})
        assert name in message
        assert "[7, 3]" in message


def test_heads_that_do_not_make_the_width_are_refused(
    refused: Callable[[object], str], tensors: Tensors
) -> None:
    message = refused(tensors | {"blocks.0.att.r_k": torch.zeros(3, 64)})
    assert "3 heads of 64" in message
    assert "width of 64" in message


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (
            "blocks.0.ffn.s_emb.weight",
            "RWKV-7a (DeepEmbed); this engine runs RWKV-7 only; the rwkv",
        ),
        ("blocks.0.qkv.k1", "RWKV-7b or a hybrid of 8 (its state grows with the text); this eng"),
        ("blocks.0.ffn.enn.weight", "weights of RWKV-8; this engine runs RWKV-7 only"),
        ("blocks.0.att.time_state", "tuned initial state"),
        ("blocks.0.att.key.lora_A", "adapter"),
        ("blocks.0.att.surprise", "surprise is not a tensor of RWKV-7"),
    ],
)
def test_what_is_more_than_rwkv_7_is_refused(
    refused: Callable[[object], str], tensors: Tensors, name: str, what: str
) -> None:
    assert what in refused(tensors | {name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["time_decay", "time_mix_k"], "RWKV-4"),
        (["time_decay", "ln_x.weight"], "RWKV-5;"),
        (["time_decay", "ln_x.weight", "gate.weight"], "RWKV-5.1 or 5.2"),
        (["time_decay", "ln_x.weight", "gate.weight", "time_maa_x"], "RWKV-6"),
    ],
)
def test_other_versions_are_refused_by_name(
    refused: Callable[[object], str], names: list[str], what: str
) -> None:
    content = {f"blocks.0.att.{name}": torch.zeros(4) for name in names}
    assert what in refused(content | {"emb.weight": torch.zeros(8, 4)})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "found none at all"),
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "found a, b"),
        ([torch.zeros(2)], "found a list"),
        ({"state_dict": {"emb.weight": torch.zeros(2, 2)}}, "'state_dict': dict"),
        ({1: torch.zeros(2)}, "1: Tensor"),
        ({"emb.weight": torch.zeros(2, 2), "_strategy": "cpu fp32"}, "has converted for one"),
        ({"emb.weight": Path("objects")}, "other objects than tensors"),
        ({"emb.weight": torch.zeros(1).expand(1 << 40, 64)}, "more than the file holds"),
        ({"emb.weight": torch.zeros(2, 2).to_sparse()}, "as torch.sparse_coo"),
        ({"emb.weight": torch.zeros(2, 2, device="meta")}, "without its values"),
    ],
)
def test_files_without_a_model_are_refused(
    refused: Callable[[object], str], content: object, what: str
) -> None:
    assert what in refused(content)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(1 << 20))
        archive.writestr("archive/version", "3")
    with pytest.raises(WeightsError, match="compressed"):
        read(path)


def test_an_archive_that_only_pytorch_would_unpack_is_refused(tmp_path: Path) -> None:
    """One of a zip version to come: Python's reader stops there, PyTorch's unpacks it."""
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}." + bytes(1 << 20))
        archive.writestr("archive/version", "3")
    content = path.read_bytes()
    listed = b"PK\x01\x02" + bytes([zipfile.DEFAULT_VERSION, 3])
    assert content.count(listed) == 2
    path.write_bytes(content.replace(listed + bytes([20, 0]), listed + bytes([64, 0])))
    with pytest.raises(WeightsError, match=r"damaged or truncated .pth file: zip file version 6.4"):
        read(path)


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read: File name too long"):
        read(tmp_path / ("x" * 300))


def test_quantised_weights_are_refused(refused: Callable[[object], str], tensors: Tensors) -> None:
    name = "blocks.0.att.key.weight"
    assert "torch.int8" in refused(tensors | {name: tensors[name].to(torch.int8)})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "an empty file"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"fmgg" + bytes(30), "a file of rwkv.cpp"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08\x00", "a gzip archive"),
        (b"hello, world", "begins with 68 65 6c 6c 6f"),
        (b"PK\x03\x04" + bytes(100), "damaged or truncated .pth"),
        (struct.pack("<Q", 4) + b"{no}" + bytes(30), "damaged or truncated .safetensors"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read(path)
    assert what in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path, name: str) -> None:
    write_random_weights(tmp_path / name, small_architecture(layers=1, width=64, heads=1))
    whole = (tmp_path / name).read_bytes()
    cut = tmp_path / f"cut {name}"
    for length in (0, 1, 9, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match="cut model"):
            read(cut)


def test_a_safetensors_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    claim = {"emb.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    header = json.dumps(claim).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(WeightsError, match="damaged or truncated"):
        read(path)


def test_a_directory_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="directory"):
        read(tmp_path)
    with pytest.raises(WeightsError, match="No such file"):
        read(tmp_path / "missing.pth")


def test_the_trained_tiny_model_is_read(data_dir: Path) -> None:
    path = data_dir / "rwkv_cpp" / "tiny-rwkv-7v0-834K.pth"
    found = read_weights(path, torch.float32, CPU).architecture
    assert (found.layers, found.width, found.vocabulary, found.heads) == (12, 64, 256, 1)


def test_formats_hold_the_same(tmp_path: Path, tensors: Tensors) -> None:
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "model.pth")
    one, other = read(tmp_path / "model.safetensors"), read(tmp_path / "model.pth")
    assert all(torch.equal(one[name], other[name]) for name in tensors)
