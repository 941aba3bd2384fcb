"""A stream's state in memory of its own, which the kernel writes on in, token by token.

New memory for every state in every step would take a sixth of a step of 128 streams: tensors to
make, pages to find, and each state in the caches twice.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import torch
from torch import Tensor

from rwkv_runtime.hugepages import use_huge_pages
from rwkv_runtime.model import LayerState, ModelState

ALIGNED = 64


class Held:
    """Made by `Kernel.hold`, and written to by `Kernel.go_on` alone; one stream's, so one thread's
    at a time.

    Attributes:
        kernel: the one that may.
        addresses: three of each layer, as C wants them.
    """

    def __init__(self, kernel: object, state: ModelState) -> None:
        self.kernel = kernel
        given = list(_tensors(state))
        sizes = [-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in given]
        memory = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu")
        use_huge_pages([memory])
        self._parts = [
            piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            for piece, tensor in zip(torch.split(memory, sizes), given, strict=True)
        ]
        self.addresses = struct.pack(f"{len(given)}N", *(part.data_ptr() for part in self._parts))

    def state(self) -> ModelState:
        """What it is now, in other memory."""
        parts = [part.clone() for part in self._parts]
        return tuple(LayerState(*parts[i : i + 3]) for i in range(0, len(parts), 3))


def _tensors(state: ModelState) -> Iterator[Tensor]:
    for layer in state:
        yield from (layer.att_x_prev, layer.att_kv, layer.ffn_x_prev)
