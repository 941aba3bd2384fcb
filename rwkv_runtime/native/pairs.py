"""Whether a library's bf16 products are those that `products.h` describes.

They are computed by the processor's own instruction for pairs of bf16 where it has one. Makers
describe it, and nothing guarantees it: so it is believed after it was compared with the
description, on numbers of all sizes, and only then.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from rwkv_runtime.native.blocks import BLOCK

INPUTS = 16
TRIALS = 96  # of 64 sums over 16 inputs each; they take some ten milliseconds
# The exponent, with its bias, about which a trial's products lie: at the least normal number, in
# the middle, beyond the greatest.
MIDDLES = (-6, 1, 8, 15, 60, 127, 200, 250)
SPREAD = 10


def as_described(library: ctypes.CDLL, trials: int = TRIALS, seed: int = 0) -> bool:
    """Compare so many trials."""
    source = torch.Generator().manual_seed(seed)
    for trial in range(trials):
        middle = MIDDLES[trial % len(MIDDLES)]
        one = int(torch.randint(60, 195, (), generator=source))
        x = _halves((INPUTS,), one, source)
        block = _halves((INPUTS // 2, BLOCK, 2), middle + 127 - one, source)
        if not _same(library, x, block):
            return False
    return _same(library, *_at_the_least())


def _same(library: ctypes.CDLL, x: Tensor, block: Tensor) -> bool:
    computed = _sums(library.rwkv7_sums, x, block)
    described = _sums(library.rwkv7_described_sums, x, block)
    bits = computed.view(torch.int32) == described.view(torch.int32)
    return bool((bits | (computed.isnan() & described.isnan())).all())


def _at_the_least() -> tuple[Tensor, Tensor]:
    """Sums that are the least normal number less 0.5 to 1.5 times 2^-151: some are rounded up to it
    again, and others count as zero.
    """
    x = torch.zeros(INPUTS, dtype=torch.float32)
    block = torch.zeros(INPUTS // 2, BLOCK, 2, dtype=torch.float32)
    x[0], x[1] = -(2.0**-75), 2.0**-63
    block[0, :, 0] = (0.5 + torch.arange(BLOCK) / BLOCK) * 2.0**-76
    block[0, :, 1] = 2.0**-63
    return x.bfloat16(), block.bfloat16()


def _halves(shape: tuple[int, ...], exponent: int, source: torch.Generator) -> Tensor:
    """The bits of bf16 of about that exponent, here and there a zero or what is no number."""
    near = torch.randint(-SPREAD, SPREAD + 1, shape, generator=source) + exponent
    rest = torch.randint(0, 128, shape, generator=source)
    sign = torch.randint(0, 2, shape, generator=source)
    return (sign << 15 | near.clamp(0, 255) << 7 | rest).to(torch.uint16)


def _sums(function: ctypes._NamedFuncPointer, x: Tensor, block: Tensor) -> Tensor:
    sums = torch.empty(BLOCK, dtype=torch.float32)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, block, sums))
    function(ctypes.c_int64(len(x)), *pointers)
    return sums
