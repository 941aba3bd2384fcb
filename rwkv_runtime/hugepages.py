"""Weights in memory pages of 2 MiB, where Linux has them to give.

A decoded token reads every weight once, and with pages of 4 KiB the processor spends half of that
time on finding them: measured in a virtual machine, one thread reads 16 GB/s from small pages and
30 GB/s from large ones. Values and bits stay as they are; a refusal costs speed alone.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

PAGE = 1 << 21  # 2 MiB
# Of <linux/mman.h>: large pages are welcome here; make them now (Linux 6.1 and newer).
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25


def use_huge_pages(tensors: Iterable[Tensor]) -> None:
    """Ask for large pages under these tensors. Does nothing for a GPU's, or away from Linux."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    for address, length in _runs(_places(tensors)):
        for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
            # A page may be refused (no memory, an old kernel): then it stays as it is.
            libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), advice)


def _places(tensors: Iterable[Tensor]) -> Iterator[tuple[int, int]]:
    """Address and bytes of each tensor in main memory."""
    packed = torch.ops.mkldnn
    for tensor in tensors:
        if tensor.is_mkldnn:
            if hasattr(packed, "data_ptr"):  # not in every release
                yield packed.data_ptr(tensor), packed._nbytes(tensor)  # noqa: SLF001 - as all of `torch.ops`
        elif tensor.device.type == "cpu":
            yield tensor.data_ptr(), tensor.nbytes


def _runs(places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Address and bytes of the stretches of large pages of which tensors fill a half or more."""
    filled: Counter[int] = Counter()
    for address, length in places:
        for page in range(address // PAGE, -(-(address + length) // PAGE)):
            inside = min(address + length, (page + 1) * PAGE) - max(address, page * PAGE)
            filled[page] += inside
    pages = sorted(page for page, size in filled.items() if 2 * size >= PAGE)
    first = 0
    for place, page in enumerate(pages, start=1):
        if place == len(pages) or pages[place] != page + 1:
            yield pages[first] * PAGE, (place - first) * PAGE
            first = place
