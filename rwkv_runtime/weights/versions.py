"""Which RWKV a weights file holds, versions 4 to 7, told by the names and shapes of its tensors.

    version  told by                              state per layer
    4        att.time_decay                       five vectors
    5        att.ln_x                             x, [H, K, V], x
    5.1      att.gate                             the same
    5.2      a decay for every channel            the same
    6        att.time_maa_x                       the same
    7        att.r_k                              x, [H, V, K], x
    7a       ffn.s_emb (DeepEmbed)                the same

Versions whose state grows with the text (7b, the hybrids of 8) have no constant state to store, and
8 itself is computed by no engine here: they are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rwkv_runtime.errors import WeightsError

Shapes = Mapping[str, tuple[int, ...]]

_NUMBER: Final = "(0|[1-9][0-9]{0,3})"
_LAYER: Final = re.compile(rf"blocks\.{_NUMBER}\.")
# The first match decides.
_REFUSED: Final = (
    (r"blocks\.\d+\.qkv\.enn", "a hybrid of RWKV-8 with attention: its state grows with the text"),
    (r"blocks\.\d+\.qkv\.", "RWKV-7b (DeepEmbed attention): its state grows with the text"),
    (r"blocks\.\d+\.ffn\.enn", "RWKV-8, which no engine here computes"),
    (r"blocks\.\d+\.(attn|self_attn)\.", "a hybrid with attention: its state grows with the text"),
    (r"blocks\.\d+\.tiny_", "RWKV-4 with tiny attention: its state grows with the text"),
    (r".*\blora_", "an adapter: merge it into its base first"),
    (r"model\.", "weights with Hugging Face names: they load into the project's own engine"),
)
_VERSIONS: Final = (
    (rf"blocks\.{_NUMBER}\.ffn\.s_emb", "7a"),
    (rf"blocks\.{_NUMBER}\.att\.r_k", "7"),
    (rf"blocks\.{_NUMBER}\.att\.time_maa_x", "6"),
    (rf"blocks\.{_NUMBER}\.att\.gate\.", "5.1"),  # or 5.2: the decay's shape tells
    (rf"blocks\.{_NUMBER}\.att\.ln_x\.", "5"),
    (rf"blocks\.{_NUMBER}\.att\.time_decay", "4"),
)


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What a state's shapes follow from."""

    version: str
    layers: int
    width: int
    heads: int  # 0 for version 4, which has none
    head_size: int
    vocabulary: int
    tuned: bool  # the file holds an initial state of its own (time_state)

    @property
    def is_seven(self) -> bool:
        """Version 7, with DeepEmbed or without."""
        return self.version in ("7", "7a")


def dimensions_of(path: Path, shapes: Shapes) -> Dimensions:
    """Version and dimensions of the tensors in `path`.

    Raises:
        WeightsError: no RWKV, one that has no constant state, or tensors that do not fit together.
    """
    version = _version_of(path, shapes)
    vocabulary, width = _matrix(path, shapes, "emb.weight")
    layers = 1 + max(int(found[1]) for name in shapes if (found := _LAYER.match(name)))
    heads, head_size = _heads(path, shapes, version)
    attention = _matrix(path, shapes, "blocks.0.att.key.weight")[0]
    if attention != width or (heads and heads * head_size != width):
        raise WeightsError(f"{path}: {heads} heads, {attention} keys and a width of {width}")
    head = _matrix(path, shapes, "head.weight")
    if head != (vocabulary, width):
        raise WeightsError(
            f"{path}: head.weight has shape {list(head)}, expected {[vocabulary, width]}"
        )
    tuned = any(name.endswith(".att.time_state") for name in shapes)
    return Dimensions(version, layers, width, heads, head_size, vocabulary, tuned)


def _version_of(path: Path, shapes: Shapes) -> str:
    for pattern, what in _REFUSED:
        if any(re.match(pattern, name) for name in shapes):
            raise WeightsError(f"{path}: found {what}")
    for pattern, version in _VERSIONS:
        if any(re.match(pattern, name) for name in shapes):
            return _with_decay(path, shapes) if version == "5.1" else version
    some = ", ".join(sorted(shapes)[:3]) or "none at all"
    raise WeightsError(f"{path}: expected the tensor names of an RWKV, found {some}")


def _with_decay(path: Path, shapes: Shapes) -> str:
    """5.1 has one decay for a head, 5.2 one for every channel."""
    shape = _shape(path, shapes, "blocks.0.att.time_decay")
    return "5.2" if len(shape) > 1 and shape[1] > 1 else "5.1"


def _heads(path: Path, shapes: Shapes, version: str) -> tuple[int, int]:
    if version == "4":
        return 0, 0
    names = {"7": "r_k", "7a": "r_k", "6": "time_faaaa"}
    name = f"blocks.0.att.{names.get(version, 'time_decay')}"
    shape = _shape(path, shapes, name)
    heads = shape[0] if shape else 0
    width = _matrix(path, shapes, "blocks.0.att.key.weight")[0]
    if heads < 1 or width % heads:
        raise WeightsError(f"{path}: {heads} heads do not divide a width of {width}")
    return heads, width // heads


def _matrix(path: Path, shapes: Shapes, name: str) -> tuple[int, int]:
    shape = _shape(path, shapes, name)
    if len(shape) != 2 or 0 in shape:
        raise WeightsError(f"{path}: {name} has shape {list(shape)}, expected two dimensions")
    return shape[0], shape[1]


def _shape(path: Path, shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise WeightsError(f"{path}: the tensor {name} is missing")
    return shapes[name]
