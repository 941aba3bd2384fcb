"""Weights, stores and second processes for the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_runtime.testing import small_architecture, write_random_weights
from tests.runtime.processes import Workers


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
