"""Matrices in blocks of 64 outputs, as the kernel streams through them.

A matrix [out, in] lies as [out / 64, in, 64] in fp32 and as [out / 64, in / 2, 64, 2] in bf16,
filled up with zeros to whole blocks and an even number of inputs. That is how oneDNN packs one for
AVX-512, so a packed matrix is used where it lies: after the bytes of one of its shape were
compared, since the layout is oneDNN's own affair. What lies otherwise is copied.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

BLOCK = 64
COMPARED = 64  # blocks at once, so that comparing takes little memory


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix of `out` outputs and `inputs` inputs, both filled up."""

    address: int
    inputs: int
    out: int
    owner: Tensor  # whose memory it is


class Arranger:
    """Brings a model's matrices into blocks."""

    def __init__(self) -> None:
        self._compared: dict[torch.Size, bool] = {}  # whether oneDNN packs this shape in blocks

    def compare(self, plain: Tensor, packed: Tensor) -> None:
        """See how oneDNN has packed this matrix, while the plain one is there anyway: to make it
        again, beside a whole model, takes more memory.
        """
        self._packed_in_blocks(packed, plain)

    def blocks_of(self, weight: Tensor) -> Blocks:
        """`weight` [out, in] in blocks: its own memory where it is packed so, else a copy."""
        out, inputs = _filled(weight)
        if self._packed_in_blocks(weight):
            return Blocks(torch.ops.mkldnn.data_ptr(weight), inputs, out, weight)
        copy = _arranged(weight.to_dense() if weight.is_mkldnn else weight)
        return Blocks(copy.data_ptr(), inputs, out, copy)

    def _packed_in_blocks(self, weight: Tensor, plain: Tensor | None = None) -> bool:
        """`plain` is made of `weight` where it is not given and needed."""
        out, inputs = _filled(weight)
        size = out * inputs * weight.element_size()
        packed = torch.ops.mkldnn
        if not weight.is_mkldnn or not (
            hasattr(packed, "data_ptr") and hasattr(packed, "_nbytes")  # not in every release
        ):
            return False
        if packed._nbytes(weight) != size:  # noqa: SLF001 - as all of `torch.ops`
            return False
        if weight.shape not in self._compared:
            plain = weight.to_dense() if plain is None else plain
            self._compared[weight.shape] = _same_bytes(packed.data_ptr(weight), size, plain)
        return self._compared[weight.shape]


def _filled(weight: Tensor) -> tuple[int, int]:
    """Outputs and inputs, in whole blocks and pairs."""
    rows, columns = weight.shape
    return rows + -rows % BLOCK, columns + columns % 2


def _arranged(plain: Tensor) -> Tensor:
    out, inputs = plain.shape
    filled = F.pad(plain, (0, inputs % 2, 0, -out % BLOCK))
    group = 1 if plain.dtype == torch.float32 else 2
    parts = filled.view(-1, BLOCK, filled.shape[1] // group, group)
    return parts.transpose(1, 2).contiguous()


def _same_bytes(address: int, size: int, plain: Tensor) -> bool:
    """Whether the blocks of `plain` are what lies there."""
    memory = torch.frombuffer((ctypes.c_byte * size).from_address(address), dtype=torch.uint8)
    for rows in torch.split(plain, COMPARED * BLOCK):
        expected = _arranged(rows).view(-1).view(torch.uint8)
        if not torch.equal(memory[: len(expected)], expected):
            return False
        memory = memory[len(expected) :]
    return True
