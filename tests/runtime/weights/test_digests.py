"""The digest of a weights file: right, remembered while the file stays, never wrong after that."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rwkv_runtime.errors import WeightsError
from rwkv_runtime.weights.digests import SETTLED_NS, weights_digest

Hashed = Callable[[], tuple[bytes, bool]]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def later(path: Path) -> Callable[[], int]:
    """A clock by which the file has long been settled."""
    return lambda: path.stat().st_ctime_ns + SETTLED_NS + 1


@pytest.fixture
def hashed(weights: Path, cache: Path) -> Hashed:
    """Asks for the digest; says whether the file was read for it."""

    def ask() -> tuple[bytes, bool]:
        steps: list[tuple[int, int]] = []
        digest, _ = weights_digest(
            weights,
            cache_dir=cache,
            progress=lambda done, total: steps.append((done, total)),
            clock_ns=later(weights),
        )
        return digest, bool(steps)

    return ask


def expected(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def record(cache: Path) -> Path:
    (found,) = cache.glob("digests/*.json")
    return found


def test_a_file_is_hashed_once(hashed: Hashed, weights: Path) -> None:
    assert hashed() == (expected(weights), True)
    assert hashed() == (expected(weights), False)


def test_progress_counts_bytes_up_to_the_size(weights: Path, cache: Path) -> None:
    weights.write_bytes(bytes(20_000_000))
    steps: list[tuple[int, int]] = []
    weights_digest(
        weights, cache_dir=cache, progress=lambda done, total: steps.append((done, total))
    )
    assert len(steps) > 1
    assert steps == sorted(steps)
    assert steps[-1] == (20_000_000, 20_000_000)


def test_a_change_that_keeps_size_and_mtime_is_seen(hashed: Hashed, weights: Path) -> None:
    hashed()
    before = weights.stat()
    weights.write_bytes(os.urandom(100_000))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashed() == (expected(weights), True)


def test_a_replaced_file_is_seen(hashed: Hashed, weights: Path, tmp_path: Path) -> None:
    hashed()
    (tmp_path / "new").write_bytes(os.urandom(100_000))
    (tmp_path / "new").replace(weights)
    assert hashed() == (expected(weights), True)


def test_a_file_that_has_just_changed_is_not_remembered(weights: Path, cache: Path) -> None:
    now = weights.stat().st_ctime_ns + SETTLED_NS // 2
    digest, _ = weights_digest(weights, cache_dir=cache, clock_ns=lambda: now)
    assert digest == expected(weights)
    assert not list(cache.glob("digests/*"))


def test_a_damaged_record_is_computed_again(hashed: Hashed, weights: Path, cache: Path) -> None:
    hashed()
    whole = record(cache).read_bytes()
    for place in range(len(whole)):
        record(cache).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert hashed() == (expected(weights), True)
    for length in range(len(whole)):
        record(cache).write_bytes(whole[:length])
        assert hashed() == (expected(weights), True)


@pytest.mark.parametrize("content", [b"[]", b"{}", b"null", b'{"sha256": 5}', b"[" * 60_000])
def test_a_foreign_record_is_computed_again(
    hashed: Hashed, weights: Path, cache: Path, content: bytes
) -> None:
    hashed()
    record(cache).write_bytes(content)
    assert hashed() == (expected(weights), True)


def test_a_record_of_another_digest_is_not_believed(
    hashed: Hashed, weights: Path, cache: Path
) -> None:
    hashed()
    fields = json.loads(record(cache).read_bytes())
    record(cache).write_text(json.dumps(fields | {"sha256": "00" * 32}))
    assert hashed() == (expected(weights), True)


def test_a_cache_that_cannot_be_written_is_done_without(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    digest, _ = weights_digest(weights, cache_dir=tmp_path / "file", clock_ns=later(weights))
    assert digest == expected(weights)


@pytest.mark.parametrize("name", ["missing", "directory", "fifo"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WeightsError, match=name):
        weights_digest(tmp_path / name, cache_dir=tmp_path)


def test_a_file_that_changes_while_it_is_hashed_is_refused(weights: Path, cache: Path) -> None:
    def change(_done: int, _total: int) -> None:
        weights.write_bytes(b"other")

    with pytest.raises(WeightsError, match="changed while"):
        weights_digest(weights, cache_dir=cache, progress=change)


def test_processes_may_race(weights: Path, cache: Path) -> None:
    code = """
import pathlib, sys
from rwkv_runtime.weights.digests import weights_digest
path, cache = map(pathlib.Path, sys.argv[1:])
for _ in range(20):
    digest, _ = weights_digest(path, cache_dir=cache, clock_ns=lambda: 1 << 62)
    for record in cache.glob("digests/*.json"):
        record.unlink(missing_ok=True)
print(digest.hex())
"""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(weights), str(cache)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    outputs = {run.communicate()[0].strip() for run in runs}
    assert outputs == {expected(weights).hex()}
    assert not list(cache.glob("digests/.new-*"))


def test_links_that_lead_in_a_circle_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(WeightsError, match="symbolic links"):
        weights_digest(tmp_path / "a", cache_dir=tmp_path)
