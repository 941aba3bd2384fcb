"""The lookup filter of a file store: what is committed is found, whatever became of the filter."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.backends.sql import lookup_filter
from statestore.backends.sql.bloom import FEW, add, hashes, passing, passing_of_few
from statestore.backends.sql.file import CATALOG, FILTER, open_file_backend
from statestore.backends.sql.filter_file import FilterFile
from statestore.backends.sql.revisions import of_file
from statestore.entry import Change, Entry, Status
from statestore.errors import ClosedError
from tests.checkout import ROOT
from tests.places.backend_places import (
    CREATED_AT,
    FilePlace,
    a_blob,
    a_key,
    an_entry,
    digest,
    publish,
)
from tests.places.small_disks import fill, mounted_tmpfs
from tests.statestore.workers.filter_worker import filter_of
from tests.statestore.workers.forked import fork

FOREIGN = [a_key(number) for number in range(10**6, 10**6 + 200)]
BOOT = slice(56, 92)  # in the file


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Any]:
    opened = open_file_backend(tmp_path)
    yield opened
    opened.close()


def found(backend: Any, number: int) -> Entry | None:
    """What a prompt finds whose deeper keys are not stored."""
    return backend.longest([*FOREIGN, a_key(number)], CREATED_AT)  # type: ignore[no-any-return]


def assert_all_found(backend: Any, numbers: range) -> None:
    for number in numbers:
        entry = found(backend, number)
        assert entry is not None
        assert entry.key == a_key(number)


def is_used(backend: Any) -> bool:
    """Whether lookups of foreign keys end at the filter."""
    return not filter_of(backend).passing(FOREIGN)


def queries(backend: Any, call: Callable[[], Any]) -> int:
    """How many statements a lookup sends."""
    shortcut: Any = backend._database._shortcut
    rows, seen = shortcut.rows, []

    def noted(text: str, parameters: Any, until: float | None = None) -> Any:
        seen.append(text)
        return rows(text, parameters, until)

    shortcut.rows = noted
    call()
    shortcut.rows = rows
    return len(seen)


def overwrite(root: Path, offset: int, content: bytes) -> None:
    with (root / FILTER).open("r+b") as file:
        file.seek(offset)
        file.write(content)


def identity(root: Path) -> int:
    return (root / FILTER).stat().st_ino


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=300, unique=True), st.integers(0, 12))
def test_what_was_added_passes(numbers: list[int], log2: int) -> None:
    words = np.zeros(1 << log2, np.uint64)
    added = hashes([digest(f"{number}") for number in numbers])
    assert add(words, added) <= len(numbers)
    assert passing(words, added) == list(range(len(numbers)))
    assert add(words, added) == 0


def test_little_else_passes() -> None:
    words = np.zeros(1 << 12, np.uint64)
    add(words, hashes([digest(f"stored {number}") for number in range(2 << 12)]))
    foreign = hashes([digest(f"foreign {number}") for number in range(40_000)])
    assert len(passing(words, foreign)) < 60  # about 20 at the fullest


@given(
    kept=st.sets(st.integers(0, 400), max_size=200),
    asked=st.lists(st.integers(0, 400), max_size=FEW),
    log2=st.integers(1, 6),
)
def test_of_few_the_same_pass_as_of_many(kept: set[int], asked: list[int], log2: int) -> None:
    words = np.zeros(1 << log2, np.uint64)
    add(words, hashes([digest(f"{number}") for number in kept]))
    digests = [digest(f"{number}") for number in asked]
    assert passing_of_few(words.data, digests) == passing(words, hashes(digests))


@pytest.mark.parametrize("foreign", [0, 1, FEW - 1, FEW, FEW + 1, 200])
def test_an_entry_is_found_behind_few_keys_and_many(backend: Any, foreign: int) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    assert backend.longest([*FOREIGN[:foreign], entry.key], CREATED_AT) == entry
    assert backend.longest(FOREIGN[:foreign], CREATED_AT) is None


def test_a_miss_does_not_ask_the_catalog(backend: Any) -> None:
    publish(backend, an_entry(0))
    assert found(backend, 0) == an_entry(0, blob=found(backend, 0).blob)  # type: ignore[union-attr]
    assert queries(backend, lambda: backend.longest(FOREIGN, CREATED_AT)) == 0
    assert queries(backend, lambda: found(backend, 0)) == 1


def test_an_empty_store_of_a_process_that_only_looks_has_none(tmp_path: Path, backend: Any) -> None:
    assert found(backend, 0) is None
    assert not (tmp_path / FILTER).exists()


def test_the_file_is_for_its_owner_alone(tmp_path: Path, backend: Any) -> None:
    publish(backend, an_entry(0))
    assert (tmp_path / FILTER).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.glob("*filter*")] == [FILTER]


def test_a_closed_store_says_so(backend: Any) -> None:
    publish(backend, an_entry(0))
    backend.close()
    with pytest.raises(ClosedError):
        backend.longest(FOREIGN, CREATED_AT)


def test_others_entries_are_found_while_generations_change(tmp_path: Path) -> None:
    arguments = [
        sys.executable,
        "-m",
        "tests.statestore.workers.filter_worker",
        str(tmp_path),
        "3",
        "20",
    ]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    backend = open_file_backend(tmp_path)
    filter_of(backend).build()
    assert is_used(backend)
    assert_all_found(backend, range(60))
    backend.close()


def test_two_that_are_open_see_each_others_entries(tmp_path: Path, backend: Any) -> None:
    other: Any = open_file_backend(tmp_path)
    for number in range(20):
        publish((backend, other)[number % 2], an_entry(number))
        assert_all_found((other, backend)[number % 2], range(number, number + 1))
    assert is_used(backend)
    assert is_used(other)
    other.close()


def test_a_forked_child_and_its_parent(backend: Any) -> None:
    publish(backend, an_entry(0))
    assert is_used(backend)

    def work() -> None:
        assert_all_found(backend, range(1))
        publish(backend, an_entry(1))

    _, status = os.waitpid(fork(work), 0)
    assert status == 0
    assert is_used(backend)
    assert_all_found(backend, range(2))


def test_too_full_it_is_made_anew_and_larger(
    tmp_path: Path, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup_filter, "_MIN_LOG2", 2)
    files, sizes = set(), set()
    for number in range(40):
        publish(backend, an_entry(number))
        assert_all_found(backend, range(number + 1))
        files.add(identity(tmp_path))
        sizes.add((tmp_path / FILTER).stat().st_size)
    assert sizes == {4096 + 8 * words for words in (4, 16, 64)}
    assert filter_of(backend)._file.noted == 40


def test_removed_entries_leave_with_the_next_generation(backend: Any) -> None:
    for number in range(10):
        publish(backend, an_entry(number))
    for number in range(9):
        backend.delete(a_key(number), "deleted")
    assert filter_of(backend)._file.noted == 10
    assert filter_of(backend).build()
    assert is_used(backend)
    assert filter_of(backend)._file.noted == 1
    assert_all_found(backend, range(9, 10))
    publish(backend, an_entry(3))
    assert_all_found(backend, range(3, 4))


def test_a_writer_killed_before_its_commit(tmp_path: Path, backend: Any) -> None:
    publish(backend, an_entry(0))

    def work() -> None:
        child: Any = open_file_backend(tmp_path)
        note = filter_of(child).note

        def note_and_die(noted: bytes) -> None:
            note(noted)
            os.kill(os.getpid(), signal.SIGKILL)

        filter_of(child).note = note_and_die
        publish(child, an_entry(1))

    _, status = os.waitpid(fork(work), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert list(filter_of(backend).passing([*FOREIGN, a_key(1)])) == [a_key(1)]
    assert found(backend, 1) is None
    publish(backend, an_entry(1))
    assert_all_found(backend, range(2))


def test_a_builder_killed_half_way_is_replaced(
    tmp_path: Path, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(backend, an_entry(0))

    def work() -> None:
        child: Any = open_file_backend(tmp_path)
        filter_of(child)._complete = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        filter_of(child).build()

    _, status = os.waitpid(fork(work), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    publish(backend, an_entry(1))  # leaves it alone: somebody else may still be at it
    assert not is_used(backend)
    assert_all_found(backend, range(2))
    monkeypatch.setattr(lookup_filter, "_OVERDUE_S", -1.0)
    publish(backend, an_entry(2))
    assert is_used(backend)
    assert_all_found(backend, range(3))


def test_of_two_builders_one_gives_up(tmp_path: Path, backend: Any) -> None:
    publish(backend, an_entry(0))
    other: Any = open_file_backend(tmp_path)
    complete = filter_of(backend)._complete

    def interrupted(file: FilterFile) -> bool:
        assert filter_of(other).build()
        return complete(file)  # type: ignore[no-any-return]

    filter_of(backend)._complete = interrupted
    assert not filter_of(backend).build()
    assert is_used(backend)
    assert_all_found(backend, range(1))
    other.close()


def test_an_entry_put_while_all_digests_are_read(tmp_path: Path, backend: Any) -> None:
    publish(backend, an_entry(0))
    other: Any = open_file_backend(tmp_path)
    page = filter_of(backend)._page

    def page_then_put(*arguments: Any) -> Any:
        read = page(*arguments)
        if read[2]:
            assert publish(other, an_entry(1))
            assert backend.delete(a_key(0), "deleted")
        return read

    filter_of(backend)._page = page_then_put
    assert filter_of(backend).build()
    assert is_used(backend)
    assert_all_found(backend, range(1, 2))
    other.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: overwrite(root, BOOT.start, b"0" * 36),
        lambda root: overwrite(root, 16, b"\1\2\3\4"),  # the generation
        lambda root: (
            shutil.copy(root / FILTER, root / "copy") and (root / "copy").replace(root / FILTER)
        ),
        lambda root: (root / FILTER).unlink(),
    ],
    ids=["another boot", "another catalog's", "a copy", "gone"],
)
def test_what_is_not_ours_is_not_believed(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    first: Any = open_file_backend(tmp_path)
    publish(first, an_entry(0))
    assert is_used(first)
    first.close()
    overwrite(tmp_path, 4096, bytes(8 << 12))  # believed, it would hide the entry
    spoil(tmp_path)
    backend: Any = open_file_backend(tmp_path)
    assert not is_used(backend)
    assert_all_found(backend, range(1))
    publish(backend, an_entry(1))
    assert is_used(backend)
    assert_all_found(backend, range(2))
    backend.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, 5000),
        lambda path: path.write_bytes(os.urandom(9000)),
        lambda path: path.write_bytes(b"rwkvfltr" + b"\xff" * 4096),
        lambda path: path.unlink(),
    ],
    ids=["emptied", "cut", "noise", "absurd", "removed"],
)
def test_a_file_spoilt_while_it_is_mapped(
    tmp_path: Path, backend: Any, spoil: Callable[[Path], Any]
) -> None:
    other: Any = open_file_backend(tmp_path)
    publish(backend, an_entry(0))
    assert is_used(other)
    spoil(tmp_path / FILTER)
    assert_all_found(other, range(1))
    assert_all_found(backend, range(1))
    publish(backend, an_entry(1))
    assert is_used(other)
    assert_all_found(other, range(2))
    other.close()


def test_a_directory_in_its_place(tmp_path: Path, backend: Any) -> None:
    (tmp_path / FILTER).mkdir()
    publish(backend, an_entry(0))
    assert not is_used(backend)
    assert_all_found(backend, range(1))


def test_a_backup_put_back(tmp_path: Path) -> None:
    backend: Any = open_file_backend(tmp_path)
    publish(backend, an_entry(0))
    with (
        closing(sqlite3.connect(tmp_path / CATALOG)) as live,
        closing(sqlite3.connect(tmp_path / "backup")) as backup,
    ):
        live.backup(backup)
    backend.delete(a_key(0), "deleted")
    filter_of(backend).build()
    assert not filter_of(backend).passing([a_key(0)])
    backend.close()
    (tmp_path / "backup").replace(tmp_path / CATALOG)
    backend = open_file_backend(tmp_path)
    assert_all_found(backend, range(1))
    backend.close()


def test_a_catalog_replaced_under_an_open_store_is_noticed(
    tmp_path: Path, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(backend, an_entry(0))
    assert is_used(backend)
    with closing(sqlite3.connect(tmp_path / CATALOG)) as connection:
        connection.execute("PRAGMA user_version=7")
    monkeypatch.setattr(lookup_filter, "_CHECKED_S", 0.0)
    assert not is_used(backend)
    assert_all_found(backend, range(1))


def test_what_a_former_release_wrote_is_found(tmp_path: Path) -> None:
    backend: Any = open_file_backend(tmp_path)
    publish(backend, an_entry(0))
    backend.close()
    with of_file(tmp_path) as revisions:
        revisions.downgrade("0003")
    with closing(sqlite3.connect(tmp_path / CATALOG)) as connection, connection:
        rows = connection.execute("SELECT * FROM entries")
        names = [column[0] for column in rows.description]
        row = {
            **dict(zip(names, rows.fetchone(), strict=True)),
            "digest": a_key(1).digest,
            "n_tokens": a_key(1).n_tokens,
            "blob": f"{a_key(1)}.{'0' * 16}",
        }
        connection.execute(
            f"INSERT INTO entries ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
            [row[name] for name in names],
        )
    backend = open_file_backend(tmp_path)
    assert not is_used(backend)
    assert_all_found(backend, range(2))
    backend.sweep(CREATED_AT, 3600.0)
    assert is_used(backend)
    assert_all_found(backend, range(2))
    backend.close()


def test_a_lost_page_is_mended_by_a_sweep(
    tmp_path: Path, backend: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(8):
        publish(backend, an_entry(number))
    overwrite(tmp_path, 4096, bytes(8 << 12))
    assert found(backend, 0) is None
    backend.sweep(CREATED_AT, 3600.0)
    assert "entries were missing from its lookup filter" in caplog.text
    assert is_used(backend)
    assert_all_found(backend, range(8))


def test_what_a_lost_page_hides_is_counted_while_others_put(tmp_path: Path, backend: Any) -> None:
    for number in range(8):
        publish(backend, an_entry(number))
    assert backend.hidden(mend=True) == 0
    words = filter_of(backend)._file.words
    words[int(hashes([a_key(3).digest])[0, 0]) % len(words)] = 0
    other: Any = open_file_backend(tmp_path)
    page = filter_of(backend)._page

    def page_then_put(*arguments: Any) -> Any:
        read = page(*arguments)
        publish(other, an_entry(100 + read[2]))
        return read

    filter_of(backend)._page = page_then_put
    assert backend.hidden(mend=True) == 1
    assert backend.hidden(mend=False) == 0
    assert_all_found(backend, range(8))
    other.close()


def test_a_lost_page_is_mended_by_the_next_put(tmp_path: Path, backend: Any) -> None:
    publish(backend, an_entry(0))
    overwrite(tmp_path, 4096, bytes(8 << 12))
    assert found(backend, 0) is None
    assert not publish(backend, an_entry(0))
    assert_all_found(backend, range(1))


def test_a_quarantined_entry_that_is_replaced(backend: Any) -> None:
    publish(backend, an_entry(0))
    backend.update(a_key(0), Change(status=Status.QUARANTINED, reason="damaged"))
    assert found(backend, 0) is None
    publish(backend, an_entry(0))
    assert_all_found(backend, range(1))


def test_an_adopted_entry(tmp_path: Path, backend: Any) -> None:
    publish(backend, an_entry(0))
    entry = an_entry(1)
    FilePlace(tmp_path).write_blob(entry.blob, a_blob(entry.key), 0.0)
    assert backend.adopt(entry)
    assert is_used(backend)
    assert_all_found(backend, range(2))


def test_a_large_store_is_read_by_a_thread_of_who_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: Any = open_file_backend(tmp_path)
    for number in range(5):
        publish(first, an_entry(number))
    first.close()
    (tmp_path / FILTER).unlink()
    monkeypatch.setattr(lookup_filter, "_FEW", 0)
    monkeypatch.setattr(lookup_filter, "_PAGE_OF_DIGESTS", lookup_filter._digests(2))
    backend: Any = open_file_backend(tmp_path)
    for _ in range(lookup_filter._PATIENT_LOOKUPS - 1):
        assert found(backend, 0) is not None
    assert not (tmp_path / FILTER).exists()
    assert found(backend, 0) is not None
    builder = filter_of(backend)._builder
    if builder is not None:
        builder.join()
    assert is_used(backend)
    assert_all_found(backend, range(5))
    backend.close()


def test_a_full_disk_leaves_lookups_without(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted_tmpfs(disk, "1m"):
        backend: Any = open_file_backend(disk)
        publish(backend, an_entry(0))
        (disk / FILTER).unlink()
        fill(disk / "rest")
        assert not filter_of(backend).build()
        assert [path.name for path in disk.glob("*filter*")] == []
        assert_all_found(backend, range(1))
        (disk / "rest").unlink()
        assert filter_of(backend).build()
        assert is_used(backend)
        backend.close()
