"""How engines of PyTorch run: without gradients, on their own number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def computing(threads: int | None) -> Iterator[None]:
    """Inside, torch computes with `threads` (``None`` leaves its setting) and keeps no graph."""
    # torch keeps the number per calling thread, so setting it once at load would not do.
    if threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        yield
