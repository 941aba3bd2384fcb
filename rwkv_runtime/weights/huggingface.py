"""RWKV-7 weights as Hugging Face keeps them: a directory with ``config.json`` and safetensors, in
one file or in shards, in flash-linear-attention's names.

    model.layers.3.attn.w_lora.lora.0.weight  ->  blocks.3.att.w1, transposed
    model.layers.3.attn.w_lora.lora.2.bias    ->  blocks.3.att.w0
    model.layers.0.pre_norm.weight            ->  blocks.0.ln0.weight
    model.layers.3.attn.x_x                   ->  blocks.3.att.x_r, x_w, ... x_g, as of old

Values are the same numbers, so a model gives the same logits in either form. What the
configuration says is held against what the engine computes, and against the tensors: another
epsilon, tied embeddings, layers of attention or other sizes are refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from rwkv_runtime.errors import WeightsError

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
WHOLE: Final = "model.safetensors"

_CONFIG_BYTES: Final = 16 << 20  # 16 MiB: an index of a large model has about 1
_LAYER: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")
# The first release kept the six mixes in one tensor, in this order.
_MIXED: Final = re.compile(r"model\.layers\.(\d+)\.attn\.x_x")
_MIXES: Final = "rwkvag"
_LOW_RANK: Final = re.compile(r"attn\.([wavg])_lora\.lora\.(0\.weight|2\.weight|2\.bias)")
_LOW_RANK_PARTS: Final = {"0.weight": "1", "2.weight": "2", "2.bias": "0"}
_OUTSIDE: Final = {
    "model.embeddings.weight": "emb.weight",
    "model.norm.weight": "ln_out.weight",
    "model.norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_MODULES: Final = {
    "pre_norm": "ln0",
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn.r_proj": "att.receptance",
    "attn.k_proj": "att.key",
    "attn.v_proj": "att.value",
    "attn.o_proj": "att.output",
    "attn.g_norm": "att.ln_x",
    "attn": "att",
    "ffn": "ffn",
}
#: The epsilon of the heads' norm is `norm_eps` times the head's size there, and 64e-5 here.
_HEAD_SIZE: Final = 64
#: What the engine computes; a configuration that says otherwise is another model.
_EXPECTED: Final[dict[str, Any]] = {
    "norm_eps": 1e-5,
    "norm_first": True,
    "norm_bias": True,
    "hidden_act": "sqrelu",
    "attn": None,
    "tie_word_embeddings": False,
}

Shapes = Mapping[str, tuple[int, ...]]
Load = Callable[[str], Tensor]


def is_huggingface(shapes: Shapes) -> bool:
    """Whether tensors have these names."""
    return any(name.startswith(("model.layers.", "model.embeddings.")) for name in shapes)


@dataclass(frozen=True, slots=True)
class _Part:
    """Where an official tensor comes from."""

    name: str  # of theirs
    shape: tuple[int, ...]
    take: Callable[[Tensor], Tensor]  # from theirs


def official(path: Path, shapes: Shapes, load: Load) -> tuple[Shapes, Load]:
    """The same tensors under their official names and in their official shapes.

    Raises:
        WeightsError: a name that is not known, or two for one tensor; `path` is for the message.
    """
    source: dict[str, _Part] = {}
    for name, shape in shapes.items():
        for official_name, part in _parts(path, name, tuple(shape)).items():
            if official_name in source:
                twice = f"{source[official_name].name} and {name}"
                raise WeightsError(f"{path}: {twice} are one tensor, {official_name}")
            source[official_name] = part

    mixes: dict[str, Tensor] = {}  # a file may give each of its tensors once only

    def load_official(name: str) -> Tensor:
        part = source[name]
        if not _MIXED.fullmatch(part.name):
            return part.take(load(part.name))
        if part.name not in mixes:
            mixes[part.name] = load(part.name).clone()
        return part.take(mixes[part.name])

    return {name: part.shape for name, part in source.items()}, load_official


def _parts(path: Path, name: str, shape: tuple[int, ...]) -> dict[str, _Part]:
    """What the tensor `name` is in the official form; `_MIXES` are six."""
    mixes = _MIXED.fullmatch(name)
    if mixes is None:
        official_name, transposed = _official_name(path, name)
        if transposed:
            return {official_name: _Part(name, shape[::-1], Tensor.t)}
        return {official_name: _Part(name, shape, _as_it_is)}
    if shape[:1] != (len(_MIXES),):
        raise WeightsError(f"{path}: {name} has shape {list(shape)}, expected {len(_MIXES)} rows")
    return {
        f"blocks.{mixes[1]}.att.x_{mix}": _Part(name, shape[1:], itemgetter(row))
        for row, mix in enumerate(_MIXES)
    }


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def files_of(directory: Path) -> tuple[Path, ...]:
    """The weights files in a model's directory, in the order of their names.

    Raises:
        WeightsError: there are none, or the configuration is of a model that cannot be run here.
    """
    if not (directory / CONFIG).is_file():
        raise WeightsError(f"{directory}: expected a weights file, or a directory with {CONFIG}")
    _check_config(directory / CONFIG)
    if (directory / WHOLE).is_file():
        return (directory / WHOLE,)
    index = directory / INDEX
    if not index.is_file():
        raise WeightsError(f"{directory}: neither {WHOLE} nor {INDEX} is there")
    shards = _read_json(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) and _is_plain(name) for name in names):
        raise WeightsError(f"{index}: it names no weights files")
    return tuple(directory / name for name in sorted(set(names)))


def _is_plain(name: str) -> bool:
    return name.isprintable() and Path(name).name == name


def check_config_beside(path: Path) -> None:
    """Compare the configuration beside the weights file `path`, if there is one, with what the
    engine computes.

    Raises:
        WeightsError: it is of another model.
    """
    config = path.parent / CONFIG
    if not path.is_dir() and config.is_file():
        _check_config(config)


def check_sizes(path: Path, sizes: Mapping[str, int]) -> None:
    """Compare `sizes`, the tensors' by the names of the configuration, with the configuration of
    the weights at `path`, if there is one. A number of heads counts only where no size of a head is
    given: converted models say 32 whatever they have, and nothing reads it.

    Raises:
        WeightsError: they differ, or heads are of a size that is computed otherwise there.
    """
    config = (path if path.is_dir() else path.parent) / CONFIG
    said = _read_json(config) if config.is_file() else {}
    unread = {"num_heads"} if said.get("head_dim") is not None else set()
    for name, size in sizes.items():
        if name not in unread and said.get(name, size) not in (size, None):
            raise WeightsError(f"{config}: {name} is {said[name]!r}, the tensors' is {size}")
    if sizes["head_dim"] != _HEAD_SIZE:
        raise WeightsError(
            f"{path}: heads of {sizes['head_dim']}; in Hugging Face's form this engine computes "
            f"heads of {_HEAD_SIZE} only, for others the epsilon of their norm is another"
        )


def _official_name(path: Path, name: str) -> tuple[str, bool]:
    """Official name, and whether its matrix is the transposed one."""
    if name in _OUTSIDE:
        return _OUTSIDE[name], False
    layer = _LAYER.fullmatch(name)
    if layer is not None:
        block, rest = f"blocks.{layer[1]}", layer[2]
        low_rank = _LOW_RANK.fullmatch(rest)
        if low_rank is not None:
            part = _LOW_RANK_PARTS[low_rank[2]]
            return f"{block}.att.{low_rank[1]}{part}", part != "0"
        module, _, leaf = rest.rpartition(".")
        if module in _MODULES:
            return f"{block}.{_MODULES[module]}.{leaf}", False
        outer, _, inner = module.partition(".")
        if outer == "ffn" and inner:
            return f"{block}.ffn.{inner}.{leaf}", False
    raise WeightsError(f"{path}: {name} is not a tensor of RWKV-7 in Hugging Face's form")


def _check_config(path: Path) -> None:
    config = _read_json(path)
    kind = str(config.get("model_type", ""))
    if "rwkv7" not in kind:
        raise WeightsError(f"{path}: model_type is {kind!r}; this engine runs RWKV-7")
    for name, expected in _EXPECTED.items():
        if config.get(name, expected) != expected:
            raise WeightsError(
                f"{path}: {name} is {config[name]!r}; this engine computes with {expected!r} only"
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_CONFIG_BYTES))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: damaged: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object")
    return content
