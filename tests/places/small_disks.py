"""Disks that are soon full: file systems of their own, which only root may mount."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted_tmpfs(path: Path, size: str) -> Iterator[None]:
    path.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size={size} tmpfs {path}"):
        pytest.skip("not run: no file system of its own can be mounted here, only root may")
    try:
        yield
    finally:
        assert os.system(f"umount -l {path}") == 0


def fill(path: Path) -> None:
    """Write this file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            return
