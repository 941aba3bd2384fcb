"""Weights, stores and second processes for the runtime's tests.

Models here are so small that a second thread of torch's gains nothing, and waits for a processor on
a busy machine; tests that are about threads say how many. The variable is for threads and processes
that are started later.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rwkv_runtime.testing import small_architecture, write_random_weights
from tests.runtime.workers.processes import Workers
from tests.threads import nothing_left_running

__all__ = ["nothing_left_running"]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, small: 2 layers, width 128, vocabulary 256."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    write_random_weights(path, small_architecture(), seed=1)
    return path


@pytest.fixture(scope="session")
def workers(model_path: Path) -> Iterator[Workers]:
    """Second processes over the random weights."""
    running = Workers(model_path)
    yield running
    running.close()


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """A new file store."""
    return (tmp_path / "store").as_uri()
