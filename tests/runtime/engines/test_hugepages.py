"""Large pages under weights: there where the system has them, and nothing else changes."""

from __future__ import annotations

import mmap
import platform
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from rwkv_runtime.hugepages import PAGE, _runs, use_huge_pages
from rwkv_runtime.projection import packed, projection

MADV_COLLAPSE = 25  # Linux 6.1
MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_bytes() -> int:
    """Of this process's memory, what lies in large pages."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found
    return int(found[1]) * 1024


def at_once() -> bool:
    """Whether the kernel makes large pages as soon as it is asked to: 6.1 and newer."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    known = release is not None and (int(release[1]), int(release[2])) >= (6, 1)
    return known and MODES.exists() and "[never]" not in MODES.read_text()


def test_a_page_counts_when_tensors_fill_half_of_it() -> None:
    half = PAGE // 2
    assert list(_runs([(3 * PAGE + half, PAGE)])) == [(3 * PAGE, 2 * PAGE)]
    assert list(_runs([(3 * PAGE, half - 1)])) == []
    assert list(_runs([(PAGE, half - 1), (PAGE + half, 1)])) == [(PAGE, PAGE)]
    assert list(_runs([(8 * PAGE, PAGE), (PAGE, 2 * PAGE)])) == [(PAGE, 2 * PAGE), (8 * PAGE, PAGE)]


def to_be_had(size: int) -> int:
    """Bytes in large pages that the system has for this process now: memory may be in pieces."""
    before = large_bytes()
    with mmap.mmap(-1, size) as memory:
        memory.write(bytes(size))
        with suppress(OSError):
            memory.madvise(MADV_COLLAPSE)
        return large_bytes() - before


@pytest.mark.skipif(not at_once(), reason="this system gives no large pages, or not at once")
def test_weights_lie_in_large_pages() -> None:
    weight = torch.randn(4096, 4096)
    possible = to_be_had(weight.nbytes)
    before = large_bytes()
    use_huge_pages([weight])
    assert large_bytes() - before >= possible // 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_value_and_no_bit_changes(dtype: torch.dtype) -> None:
    plain = torch.randn(2048, 1024).to(dtype)
    held, x = packed(plain.clone(), 256), torch.randn(3, 1024).to(dtype)
    copy, product = plain.clone(), projection(held)(x)
    use_huge_pages([plain, held, torch.ones(3)])
    assert torch.equal(plain, copy)
    assert torch.equal(projection(held)(x), product)
