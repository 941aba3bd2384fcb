"""RWKV-7 weights: `.pth` and `.safetensors` with the official names, or Hugging Face's -> checked
tensors and their dimensions.

Every tensor that the dimensions ask for must be there in its shape, and no other: a name that is
not known would change the model's outputs, so it is refused, not ignored. What is recognised but
cannot be run here (RWKV-4 to 6, DeepEmbed, tuned states) is refused by name.

Tensors are copied one by one into the wanted dtype, so loading takes little more memory than the
model. Always copied: whoever overwrites the file later must not change a running model, and a
matrix product's bits may depend on how its operands are aligned.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rwkv_runtime.errors import WeightsError
from rwkv_runtime.hugepages import use_huge_pages
from rwkv_runtime.projection import packed
from rwkv_runtime.weights.huggingface import (
    check_config_beside,
    check_sizes,
    files_of,
    is_huggingface,
    official,
)
from rwkv_runtime.weights.tensors import Opened, open_tensors

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MATRIX = re.compile(r"head\.weight|.*\.(receptance|key|value|output)\.weight")
BLOCK_NAME = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.(.+)")
# What tells the variants apart, the first match deciding: (pattern of a tensor name, what the file
# is).
VARIANTS = (
    (r"blocks\.\d+\.qkv\.", "RWKV-7b or a hybrid of 8 (its state grows with the text)"),
    (r"blocks\.\d+\.ffn\.enn", "weights of RWKV-8"),
    (r"blocks\.\d+\.ffn\.s_emb", "RWKV-7a (DeepEmbed)"),
    (r"blocks\.\d+\.att\.time_state", "weights with a tuned initial state (time_state)"),
    (r".*\blora_", "an adapter (merge it into its base first)"),
    (r"blocks\.\d+\.att\.r_k", ""),
    (r"blocks\.\d+\.att\.time_maa", "RWKV-6"),
    (r"blocks\.\d+\.att\.gate", "RWKV-5.1 or 5.2"),
    (r"blocks\.\d+\.att\.ln_x", "RWKV-5"),
    (r"blocks\.\d+\.att\.time_decay", "RWKV-4"),
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """The dimensions of an RWKV-7 model, as its tensors' shapes give them."""

    layers: int
    width: int
    vocabulary: int
    heads: int
    head_size: int
    decay_rank: int  # of w1, w2
    rate_rank: int  # of a1, a2
    value_rank: int  # of v1, v2; 0 where there is one layer only
    gate_rank: int  # of g1, g2
    ffn_width: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by its official name. A vector may also be stored with leading ones."""
        width, wide = self.width, self.ffn_width
        vectors = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "k_k", "k_a")
        ranks = {"w": self.decay_rank, "a": self.rate_rank, "g": self.gate_rank}
        shapes: dict[str, tuple[int, ...]] = {
            "emb.weight": (self.vocabulary, width),
            "head.weight": (self.vocabulary, width),
        }
        norms = ["blocks.0.ln0", "ln_out"]
        for layer in range(self.layers):
            block, att = f"blocks.{layer}", f"blocks.{layer}.att"
            norms += [f"{block}.ln1", f"{block}.ln2", f"{att}.ln_x"]
            shapes |= {f"{att}.{name}": (width,) for name in vectors}
            shapes[f"{att}.r_k"] = (self.heads, self.head_size)
            for name in ("receptance", "key", "value", "output"):
                shapes[f"{att}.{name}.weight"] = (width, width)
            for name, rank in (ranks | {"v": self.value_rank} if layer else ranks).items():
                shapes[f"{att}.{name}1"] = (width, rank)
                shapes[f"{att}.{name}2"] = (rank, width)
            if layer:
                shapes[f"{att}.v0"] = (width,)
            shapes[f"{block}.ffn.x_k"] = (width,)
            shapes[f"{block}.ffn.key.weight"] = (wide, width)
            shapes[f"{block}.ffn.value.weight"] = (width, wide)
        for name in norms:
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        return shapes


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A model's tensors by official name, in one dtype, on one device."""

    architecture: Architecture
    tensors: Mapping[str, Tensor]


def read_weights(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    rows: int = 0,
    on_packed: Callable[[Tensor, Tensor], None] | None = None,
) -> WeightsFile:
    """Read the weights at `path`: a file, or a directory as Hugging Face has it.

    Args:
        path: of the file or directory.
        dtype: to convert to.
        device: to bring them to.
        rows: of the products that the large matrices are packed for; 0: they stay plain.
        on_packed: shown each large matrix, plain and packed, while both are there.

    Raises:
        WeightsError: the file cannot be read, is something else, or its tensors do not fit
        together.
    """
    with _opened_all(path) as (shapes, load):
        theirs = is_huggingface(shapes)
        if theirs:
            check_config_beside(path)
            shapes, load = official(path, shapes, load)
        architecture = infer(path, shapes)
        if theirs:
            check_sizes(path, _sizes(architecture))
        tensors = {}
        for name, shape in architecture.shapes().items():
            tensor = _converted(path, name, load(name), shape, dtype, device)
            tensors[name] = tensor
            if rows and MATRIX.fullmatch(name):
                # One at a time, so that no more than one is there twice.
                tensors[name] = packed(tensor, rows)
                if on_packed is not None:
                    on_packed(tensor, tensors[name])
    use_huge_pages(tensor for name, tensor in tensors.items() if name != "emb.weight")
    return WeightsFile(architecture, tensors)


def _sizes(architecture: Architecture) -> dict[str, int]:
    """By the names of Hugging Face's configuration."""
    return {
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.layers,
        "vocab_size": architecture.vocabulary,
        "head_dim": architecture.head_size,
        "num_heads": architecture.heads,
    }


def infer(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The dimensions behind the tensors' `shapes`, all of them checked; `path` is for messages.

    Raises:
        WeightsError: other names or shapes than those of an RWKV-7.
    """
    _refuse_variants(path, shapes)
    layers = 1 + max((int(m[1]) for m in map(BLOCK_NAME.fullmatch, shapes) if m), default=0)

    def dimensions(name: str) -> tuple[int, int]:
        if name not in shapes:
            raise WeightsError(f"{path}: the tensor {name} of an RWKV-7 is missing")
        shape = shapes[name]
        if len(shape) != 2 or 0 in shape:
            raise WeightsError(f"{path}: {name} has shape {list(shape)}, expected two dimensions")
        return shape[0], shape[1]

    vocabulary, width = dimensions("emb.weight")
    heads, head_size = dimensions("blocks.0.att.r_k")
    if heads * head_size != width:
        raise WeightsError(
            f"{path}: {heads} heads of {head_size} (blocks.0.att.r_k) "
            f"do not make the width of {width} (emb.weight)"
        )
    architecture = Architecture(
        layers=layers,
        width=width,
        vocabulary=vocabulary,
        heads=heads,
        head_size=head_size,
        decay_rank=dimensions("blocks.0.att.w1")[1],
        rate_rank=dimensions("blocks.0.att.a1")[1],
        value_rank=dimensions("blocks.1.att.v1")[1] if layers > 1 else 0,
        gate_rank=dimensions("blocks.0.att.g1")[1],
        ffn_width=dimensions("blocks.0.ffn.key.weight")[0],
    )
    _check_shapes(path, shapes, architecture.shapes())
    return architecture


def _refuse_variants(path: Path, names: Mapping[str, tuple[int, ...]]) -> None:
    for pattern, what in VARIANTS:
        if any(re.match(pattern, name) for name in names):
            if what:
                raise WeightsError(
                    f"{path}: found {what}; this engine runs RWKV-7 only{_remedy(what)}"
                )
            return
    some = ", ".join(sorted(names)[:3]) or "none at all"
    raise WeightsError(f"{path}: expected RWKV-7's tensor names, found {some}")


def _remedy(what: str) -> str:
    if not what.startswith("RWKV-") or what.startswith("RWKV-7b"):
        return ""
    return "; the rwkv package runs it (load_package_engine; for commands --strategy 'cpu fp32')"


def _check_shapes(
    path: Path, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in expected.items():
        if name not in found:
            raise WeightsError(f"{path}: the tensor {name}, {list(shape)}, is missing")
        have = found[name]
        if have != shape and (len(shape) > 1 or have != (1,) * (len(have) - 1) + shape):
            raise WeightsError(f"{path}: {name} has shape {list(have)}, expected {list(shape)}")
    unused = {f"blocks.0.att.v{i}" for i in range(3)}  # block 0 makes v_first and blends nothing
    unknown = sorted(found.keys() - expected.keys() - unused)
    if unknown:
        raise WeightsError(
            f"{path}: {unknown[0]} is not a tensor of RWKV-7 ({len(unknown)} unknown)"
        )


def _converted(
    path: Path,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A copy of its own."""
    check_kind(path, name, tensor)
    return tensor.reshape(shape).to(device=device, dtype=dtype, copy=True).contiguous()


def check_kind(path: Path, name: str, tensor: Tensor) -> None:
    """Raise WeightsError for a tensor that holds other things than numbers one by one."""
    if tensor.dtype not in FLOATS:
        raise WeightsError(f"{path}: {name} holds {tensor.dtype}, expected floating point")


def weights_files(path: Path) -> tuple[Path, ...]:
    """The files that the weights at `path` consist of, in a fixed order.

    Raises:
        WeightsError: a directory without a model that can be run here.
    """
    try:
        is_directory = path.is_dir()
    except OSError as error:  # a name too long for any file
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    return files_of(path) if is_directory else (path,)


@contextmanager
def _opened_all(path: Path) -> Iterator[Opened]:
    """As `open_tensors`, over all files of the weights."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open_tensors(file)) for file in weights_files(path)]
        places: dict[str, Callable[[str], Tensor]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for found, load in opened:
            twice = sorted(found.keys() & shapes.keys())
            if twice:
                raise WeightsError(f"{path}: {twice[0]} is in two of its files")
            shapes |= found
            places |= dict.fromkeys(found, load)
        yield shapes, lambda name: places[name](name)
