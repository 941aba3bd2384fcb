"""Matrices that activations are multiplied with, in the layout that the machine reads fastest.

On an x86 CPU the large ones are packed for oneDNN once, at load, instead of in every product: at
0.1B shapes a product of one row streams its weights 2 to 3 times as fast in bf16, and one of 256
rows in fp32 takes two thirds of the time. A packed matrix replaces the plain one; there is no
second copy. Elsewhere, for float64 and for training, products are PyTorch's own.

Packing goes by two operators that PyTorch's compiler uses (`torch.ops.mkldnn`); where they are
missing or refuse, the matrix stays plain.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

Projection = Callable[[Tensor], Tensor]  # [..., in] -> [..., out]

PACKED_DTYPES = (torch.float32, torch.bfloat16)
# Below that a call of the packed product costs more than it saves (measured at 128 x 128).
PACKED_ELEMENTS = 512 * 512


def projection(weight: Tensor) -> Projection:
    """The product with `weight` [out, in], plain or packed."""
    if not weight.is_mkldnn:
        return lambda x: F.linear(x, weight)
    product: Any = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - as all of `torch.ops`
    out = weight.shape[0]

    def packed_product(x: Tensor) -> Tensor:
        rows: Tensor = product(x.reshape(-1, x.shape[-1]), weight, None, "none", [], "")
        return rows.view(*x.shape[:-1], out)

    return packed_product


def packed(weight: Tensor, rows: int) -> Tensor:
    """`weight` [out, in] in oneDNN's layout for products of `rows` rows; as it is where that is
    not to be had. Products of any number of rows are right.
    """
    if weight.numel() < PACKED_ELEMENTS or not can_pack(weight.dtype, weight.device):
        return weight
    try:
        reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)  # noqa: SLF001
    except RuntimeError:  # this build or processor has no such kernel
        return weight
    return reordered


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices are packed here."""
    known = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(
        torch.ops.mkldnn, "_linear_pointwise"
    )
    return (
        known
        and device.type == "cpu"
        and dtype in PACKED_DTYPES
        and platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and (dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    )
