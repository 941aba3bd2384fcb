"""A disk without a byte left: the store opens, and what is removed makes room."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from statestore.backends.sql import reserve
from statestore.backends.sql.file import open_file_backend
from statestore.backends.sql.reserve import Reserve
from statestore.entry import EntryFilter
from statestore.errors import FullError
from tests.places.backend_places import a_key, an_entry, publish, publish_all
from tests.places.small_disks import mounted_tmpfs
from tests.statestore.workers.commanded import run, run_json

STATES = 40
SIZE = 200_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Of 24 MiB, with a store of `STATES` on it, the even ones of which expire."""
    with mounted_tmpfs(tmp_path / "disk", "24m"):
        with closing(open_file_backend(tmp_path / "disk" / "s")) as backend:
            now = time.time()
            publish_all(
                backend,
                [
                    an_entry(n, blob_bytes=SIZE, expires_at=None if n % 2 else now + 0.5)
                    for n in range(STATES)
                ],
            )
        yield tmp_path / "disk"


def fill_up(disk: Path) -> None:
    """To the last byte."""
    with (disk / "rest").open("ab", buffering=0) as file:
        for step in (65536, 1):
            try:
                while file.write(bytes(step)):
                    pass
            except OSError:
                continue
    found = os.statvfs(disk)
    assert found.f_bfree == 0


def reserved(disk: Path) -> int:
    path = disk / "s" / "catalog.reserve"
    return path.stat().st_blocks * 512 if path.exists() else 0


def test_an_operator_gets_out_of_a_full_disk(disk: Path) -> None:
    assert reserved(disk) == reserve.SIZE_BYTES
    fill_up(disk)
    url = str(disk / "s")
    for _ in range(3):  # who only looks leaves the reserve as it was
        assert len(run_json("--store", url, "ls")) == STATES
        assert reserved(disk) == reserve.SIZE_BYTES
    key = a_key(1).hex
    assert run("--store", url, "rm", key[:16], "--yes").returncode == 0
    fill_up(disk)
    done = run("--store", url, "evict", "--to", str(4 * SIZE), "--yes")
    assert done.returncode == 0, done.stderr
    assert len(run_json("--store", url, "ls")) == 4
    assert reserved(disk) == reserve.SIZE_BYTES


def test_gc_works_on_a_full_disk(disk: Path) -> None:
    fill_up(disk)
    time.sleep(0.6)  # until half of them have expired
    assert "removed 20 expired states" in run("--store", str(disk / "s"), "gc").stdout


def test_an_open_store_evicts_deletes_and_sweeps_on_a_full_disk(disk: Path) -> None:
    with closing(open_file_backend(disk / "s")) as backend:

        def left() -> set[int]:
            return {entry.key.n_tokens - 1 for entry in backend.entries(EntryFilter())}

        fill_up(disk)
        with pytest.raises(FullError):
            publish(backend, an_entry(100, blob_bytes=SIZE))
        held = backend.usage().blob_bytes
        gone = backend.evict(held - 10 * SIZE, time.time())
        assert (gone.entries, len(left())) == (10, STATES - 10)
        for number in sorted(left())[:5]:
            fill_up(disk)
            assert backend.delete(a_key(number), "deleted")
        fill_up(disk)
        expired = {number for number in left() if not number % 2}
        assert backend.sweep(time.time() + 3600, 3600).expired == len(expired)
        assert {number % 2 for number in left()} == {1}
        assert backend.evict(0, time.time(), limit=1).entries == 1
        held = len(left())
        assert backend.evict(0, time.time()).blob_bytes == SIZE * held
        assert left() == set()
        assert publish(backend, an_entry(100, blob_bytes=SIZE))
        assert backend.recount(mend=False)
    assert reserved(disk) == reserve.SIZE_BYTES


def test_without_a_reserve_it_is_said(disk: Path) -> None:
    (disk / "s" / "catalog.reserve").unlink()
    fill_up(disk)
    done = run("--store", str(disk / "s"), "evict", "--to", "0", "--yes")
    assert done.returncode == 4
    assert "no space left" in done.stderr


def test_a_small_disk_is_not_filled_with_it(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", "8m"):
        open_file_backend(tmp_path / "disk" / "s").close()
        assert reserved(tmp_path / "disk") == 0


def test_it_is_given_up_once_and_kept_again(tmp_path: Path) -> None:
    one, other = Reserve(tmp_path / "r"), Reserve(tmp_path / "r")
    assert not one.give_up()
    one.keep()
    other.keep()
    assert (tmp_path / "r").stat().st_size == reserve.SIZE_BYTES
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o600
    assert one.give_up()
    assert not other.give_up()
    other.keep()
    assert (tmp_path / "r").exists()
    Reserve(tmp_path / "nowhere" / "r").keep()  # raises nothing


def test_many_are_removed_a_few_at_first_where_there_is_no_space(tmp_path: Path) -> None:
    kept = Reserve(tmp_path / "r")
    kept.keep()
    left, room, asked = list(range(100)), [0], []

    def remove(count: int) -> list[int]:
        asked.append(count)
        if not kept._given_up or count > room[0]:
            raise FullError("no space")
        gone, left[:] = left[:count], left[count:]
        return gone

    room[0] = 1
    for page in kept.removing_many(remove, 60):
        room[0] += 4 * len(page)
    assert asked == [60, 1, 4, 16, 39]
    assert len(left) == 40
    again = Reserve(tmp_path / "r")
    with pytest.raises(FullError):
        list(again.removing_many(lambda _: remove(1000), 60))
