"""What comes from a store is bit for bit what is computed afresh: other process, any cut, any
interruption.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statestore import EntryFilter, open_store
from tests.runtime.workers.processes import Profile, Worker, Workers

PROFILES = [
    Profile("fp32", 1),
    Profile("fp32", 2),
    Profile("bf16", 1),
    Profile("bf16", 2, kernel="native"),
]
DOCUMENT = 8_000  # tokens; read for seconds
SAME = ("logits", "state", "output", "greedy")

segment_lists = st.lists(st.integers(0, 90), min_size=1, max_size=5).filter(sum)


def make(lengths: list[int], seed: int) -> list[list[int]]:
    source = random.Random(seed)
    return [[source.randrange(256) for _ in range(length)] for length in lengths]


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert [one[name] for name in SAME] == [other[name] for name in SAME]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: f"{p.dtype}-{p.threads}-{p.kernel}")
@settings(max_examples=15)
@given(lengths=segment_lists, more=segment_lists, seed=st.integers(0, 2**32))
def test_warm_in_another_process_equals_cold(
    workers: Workers, profile: Profile, lengths: list[int], more: list[int], seed: int
) -> None:
    first, second = make(lengths, seed), make(more, seed + 1)
    with TemporaryDirectory() as directory:
        url = Path(directory, "store").as_uri()
        cold = workers(profile, 0).prefill(first, url)
        again = workers(profile, 1).prefill(first, url)
        longer = workers(profile, 1).prefill(first + second, url)
    afresh = workers(profile, 0).prefill(first + second, None)
    assert (cold["cached"], again["computed"]) == (0, 0)
    assert_same_bits(again, cold)
    assert_same_bits(longer, afresh)
    total = sum(lengths) + sum(more)
    assert longer["cached"] + longer["computed"] == total == afresh["computed"]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda p: f"{p.dtype}-{p.threads}-{p.kernel}")
@settings(max_examples=3)
@given(lengths=segment_lists, seed=st.integers(0, 2**32))
def test_resuming_at_every_chunk_end_equals_cold(
    workers: Workers, profile: Profile, lengths: list[int], seed: int
) -> None:
    everywhere = profile._replace(stride=1)
    segments = make(lengths, seed)
    with TemporaryDirectory() as directory:
        full = Path(directory, "full")
        cold = workers(everywhere, 0).prefill(segments, full.as_uri())
        stored = stored_positions(full)
        assert stored[-1] == sum(lengths)
        for number, position in enumerate(stored):
            cut = Path(directory, f"cut-{number}")
            shutil.copytree(full, cut)
            keep_up_to(cut, position)
            resumed = workers(everywhere, 1).prefill(segments, cut.as_uri())
            assert resumed["cached"] == position
            assert_same_bits(resumed, cold)


def stored_positions(directory: Path) -> list[int]:
    with open_store(directory.as_uri()) as store:
        return sorted(entry.key.n_tokens for entry in store.list())


def keep_up_to(directory: Path, position: int) -> None:
    with open_store(directory.as_uri()) as store:
        for entry in list(store.list(EntryFilter())):
            if entry.key.n_tokens > position:
                assert store.delete(entry.key)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_killed_half_way_goes_on_from_what_it_stored(
    workers: Workers, model_path: Path, tmp_path: Path, dtype: str
) -> None:
    profile = Profile(dtype)
    segments = make([DOCUMENT, 7], seed=3)
    cold = workers(profile).prefill(segments, None)
    victim = Worker(model_path, profile)
    victim.send(segments, (tmp_path / "store").as_uri())
    kill_once_stored(victim, tmp_path / "store", entries=10)
    resumed = workers(profile).prefill(segments, (tmp_path / "store").as_uri())
    assert 0 < resumed["cached"] < DOCUMENT
    assert_same_bits(resumed, cold)


def kill_once_stored(victim: Worker, directory: Path, entries: int) -> None:
    """SIGKILL the worker while it reads, after it has stored that many states."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (directory / "catalog.sqlite3").exists():
            with open_store(directory.as_uri()) as store:
                if store.usage().entries >= entries:
                    break
        time.sleep(0.01)
    assert victim.process.poll() is None, "it was faster than the kill"
    victim.close()
