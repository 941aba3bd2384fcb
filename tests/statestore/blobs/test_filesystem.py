"""Blobs as files: durable, whole or absent, and named errors when the file system refuses."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.backends.sql.file import open_file_backend
from statestore.blobs.base import BlobInfo
from statestore.blobs.filesystem import FilesystemBlobs
from statestore.buffers import ALIGNMENT
from statestore.errors import CorruptError, InputError, UnavailableError
from tests.checkout import ROOT
from tests.places.small_disks import mounted_tmpfs

NAME = "00ff" + "a" * 60 + "-12.0123456789abcdef"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "blobs").mkdir()
    return tmp_path / "blobs"


@pytest.fixture
def blobs(root: Path) -> FilesystemBlobs:
    return FilesystemBlobs(root)


def files(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file()}


def run_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, so that limits and user ids end with it."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )


def test_a_blob_lies_under_the_first_two_characters(blobs: FilesystemBlobs, root: Path) -> None:
    blobs.put(NAME, [b"abc", b"", b"def"])
    path = root / "00" / NAME
    assert path.read_bytes() == b"abcdef"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert files(root) == {NAME}


@given(parts=st.lists(st.binary(max_size=300), max_size=5), limit=st.none() | st.integers(0, 2000))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], limit: int | None
) -> None:
    blobs = FilesystemBlobs(tmp_path_factory.mktemp("blobs"))
    blobs.put(NAME, parts)
    blob = blobs.get(NAME, limit_bytes=limit)
    assert blob is not None
    whole = b"".join(parts)
    assert blob == (whole if limit is None else whole[:limit])
    assert blobs.size(NAME) == len(whole)


def test_what_is_read_is_aligned_writable_and_the_callers_own(blobs: FilesystemBlobs) -> None:
    for size in (1, 63, 64, 100_000, 5_000_000):
        blobs.put(NAME, [b"\x01" * size])
        first, second = blobs.get(NAME), blobs.get(NAME)
        assert first is not None
        assert second is not None
        array = np.frombuffer(first, np.uint8)
        assert array.ctypes.data % ALIGNMENT == 0
        first[0] = 2
        assert second[0] == 1
        blobs.delete(NAME)
        assert second[size - 1] == 1


def test_a_blob_that_is_not_there(blobs: FilesystemBlobs) -> None:
    assert blobs.get(NAME) is None
    assert blobs.size(NAME) is None
    assert blobs.delete(NAME) is False
    assert list(blobs.list()) == []


def test_a_deletion_says_whether_it_was_there(blobs: FilesystemBlobs, root: Path) -> None:
    blobs.put(NAME, [b"x"])
    assert blobs.delete(NAME) is True
    assert blobs.delete(NAME) is False
    assert files(root) == set()


def test_a_listing_tells_blobs_and_interrupted_writes(blobs: FilesystemBlobs, root: Path) -> None:
    before = time.time()
    blobs.put(NAME, [b"abc"])
    blobs.put("zz.other", [b""])
    (root / "00" / (NAME + ".part")).write_bytes(b"ab")
    os.utime(root / "00" / (NAME + ".part"), (5, 5))
    found = {info.name: info for info in blobs.list()}
    assert {name: info.size_bytes for name, info in found.items()} == {
        NAME: 3,
        "zz.other": 0,
        NAME + ".part": 2,
    }
    assert found[NAME + ".part"] == BlobInfo(NAME + ".part", 2, 5.0)
    assert before - 1 <= found[NAME].modified_at <= time.time()
    assert blobs.delete(NAME + ".part")


def test_a_listing_leaves_foreign_files_out(blobs: FilesystemBlobs, root: Path) -> None:
    blobs.put(NAME, [b"abc"])
    for foreign in ("00/.DS_Store", "00/Upper", "README", "00/a b", "00/.nfs0001"):
        (root / foreign).write_bytes(b"")
    (root / "lost+found").mkdir()
    (root / "zz").write_bytes(b"a file where a directory could be")
    assert [info.name for info in blobs.list()] == [NAME]


@pytest.mark.parametrize(
    "name",
    [
        *("", "a", "..", "../../etc/passwd", "ab/cd", ".hidden", "-a", "a.b", "AB12"),
        *("ab\x00", "ab\n", "a" * 129, "ü" * 4),
    ],
)
@pytest.mark.parametrize("verb", ["put", "get", "size", "delete"])
def test_an_unlawful_name_is_refused(
    blobs: FilesystemBlobs, root: Path, name: str, verb: str
) -> None:
    arguments: tuple[Any, ...] = ([b"x"],) if verb == "put" else ()
    with pytest.raises(InputError, match="unlawful"):
        getattr(blobs, verb)(name, *arguments)
    assert files(root) == set()


def test_the_suffix_of_a_write_is_kept_for_writing(blobs: FilesystemBlobs) -> None:
    with pytest.raises(InputError, match=r"\.part"):
        blobs.put("abcd.part", [b"x"])
    longest = "a" * 128
    blobs.put(longest, [b"x"])
    assert blobs.get(longest) == b"x"


def test_a_buffer_that_cannot_be_written_leaves_nothing(blobs: FilesystemBlobs, root: Path) -> None:
    scattered = memoryview(bytes(10))[::2]
    with pytest.raises(TypeError):
        blobs.put(NAME, [b"first", scattered])
    assert files(root) == set()
    blobs.put(NAME, [b"later"])
    assert blobs.get(NAME) == b"later"


VERBS: dict[str, Callable[[FilesystemBlobs], Any]] = {
    "put": lambda blobs: blobs.put(NAME, [b"x"]),
    "get": lambda blobs: blobs.get(NAME),
    "size": lambda blobs: blobs.size(NAME),
    "delete": lambda blobs: blobs.delete(NAME),
    "list": lambda blobs: list(blobs.list()),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_root_that_has_gone_is_no_miss(blobs: FilesystemBlobs, root: Path, verb: str) -> None:
    root.rmdir()
    with pytest.raises(UnavailableError, match=str(root)):
        VERBS[verb](blobs)


@pytest.mark.parametrize("verb", ["put", "get", "size", "delete"])
def test_a_file_in_the_way_is_named(blobs: FilesystemBlobs, root: Path, verb: str) -> None:
    (root / "00").write_bytes(b"")
    with pytest.raises(UnavailableError, match=f"Not a directory .*{root}/00"):
        VERBS[verb](blobs)


THINGS: dict[str, Callable[[Path], Any]] = {
    "directory": Path.mkdir,
    "pipe": os.mkfifo,
    "link to itself": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.timeout(30)  # a pipe must not be waited for
@pytest.mark.parametrize("thing", THINGS)
def test_what_is_no_file_is_a_damaged_blob(blobs: FilesystemBlobs, root: Path, thing: str) -> None:
    (root / "00").mkdir()
    THINGS[thing](root / "00" / NAME)
    with pytest.raises(CorruptError, match=f"{NAME} cannot be read"):
        blobs.get(NAME)


def test_a_bad_sector_is_a_damaged_blob(
    blobs: FilesystemBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.put(NAME, [b"x"])

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("statestore.blobs.filesystem.os.readv", fail)
    with pytest.raises(CorruptError, match="Input/output error"):
        blobs.get(NAME)


def test_a_directory_that_cannot_be_synced_leaves_nothing(
    blobs: FilesystemBlobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.put("00warm", [b"x"])

    def fail(_path: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("statestore.blobs.filesystem._sync_directory", fail)
    with pytest.raises(UnavailableError, match="Input/output error writing"):
        blobs.put(NAME, [b"x"])
    assert files(root) == {"00warm"}


def test_what_another_host_removes_meanwhile_is_a_miss(
    blobs: FilesystemBlobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over NFS a file that is open does not outlive its name."""

    def stale(_descriptor: int, _buffers: object) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    blobs.put(NAME, [b"x"])
    monkeypatch.setattr("statestore.blobs.filesystem.os.readv", stale)
    assert blobs.get(NAME) is None
    shutil.move(root, root.with_name("elsewhere"))
    (root / "00").mkdir(parents=True)
    (root / "00" / NAME).write_bytes(b"x")
    monkeypatch.setattr("statestore.blobs.filesystem.os.path.isdir", lambda _: False)
    with pytest.raises(UnavailableError, match="is its file system mounted"):
        blobs.get(NAME)


def test_a_disk_that_is_mounted_for_reading_is_named(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", "1m"):
        assert os.system(f"mount -o remount,ro {tmp_path / 'disk'}") == 0
        with pytest.raises(UnavailableError, match=r"Read-only .*/disk/s.*mount it for writing"):
            open_file_backend(tmp_path / "disk" / "s")


def test_no_space_is_named_and_leaves_nothing(root: Path) -> None:
    """A limit on the size of files fails a write half-way, as a full disk does."""
    child = run_child(
        f"""
        import resource, sys
        from pathlib import Path
        from statestore.blobs.filesystem import FilesystemBlobs
        from statestore.errors import FullError
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        blobs = FilesystemBlobs(Path(sys.argv[1]))
        blobs.put("ok" + "{NAME}", [bytes(100_000)])
        try:
            blobs.put("{NAME}", [bytes(60_000), bytes(60_000)])
        except FullError as error:
            print(error)
        """,
        root,
    )
    assert child.returncode == 0, child.stderr
    assert f"no space left writing {root}/00/{NAME}" in child.stdout
    assert files(root) == {"ok" + NAME}


@pytest.fixture
def read_only_root() -> Iterator[Path]:
    """A root that everybody may read and nobody may write, with one blob."""
    root = Path(tempfile.mkdtemp())
    (root / "00").mkdir()
    (root / "00" / NAME).write_bytes(b"x")
    for path in (root, root / "00"):
        path.chmod(0o555)
    yield root
    for path in (root, root / "00"):
        path.chmod(0o755)
    shutil.rmtree(root)


def test_a_directory_that_may_not_be_written_is_named(read_only_root: Path) -> None:
    child = run_child(
        f"""
        import os, sys
        from pathlib import Path
        from statestore.blobs.filesystem import FilesystemBlobs
        from statestore.errors import UnavailableError
        blobs = FilesystemBlobs(Path(sys.argv[1]))
        if os.geteuid() == 0:
            os.setuid(65534)  # what is forbidden to others is allowed to root
        for verb in (lambda: blobs.put("{NAME}", [b"y"]), lambda: blobs.delete("{NAME}"),
                     lambda: blobs.put("zz11", [b"y"])):
            try:
                verb()
            except UnavailableError as error:
                print(error)
        """,
        read_only_root,
    )
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert len(lines) == 3
    assert all("Permission denied" in line and "give user id" in line for line in lines)
    verbs = ("writing", "removing", "writing")
    assert all(verb in line for verb, line in zip(verbs, lines, strict=True))
    assert files(read_only_root) == {NAME}


def test_an_interrupted_write_leaves_only_a_part(root: Path) -> None:
    """SIGKILL while the bytes are being written: the blob is absent, its part is listed."""
    child = run_child(
        f"""
        import os, signal, sys
        from pathlib import Path
        from statestore.blobs.filesystem import FilesystemBlobs

        def dying(descriptor, buffers):
            write(descriptor, buffers[:1])
            os.kill(os.getpid(), signal.SIGKILL)

        write, os.writev = os.writev, dying
        FilesystemBlobs(Path(sys.argv[1])).put("{NAME}", [b"first", b"second"])
        """,
        root,
    )
    assert child.returncode == -9
    blobs = FilesystemBlobs(root)
    assert blobs.get(NAME) is None
    assert [(info.name, info.size_bytes) for info in blobs.list()] == [(NAME + ".part", 5)]


def test_more_buffers_than_one_call_takes(blobs: FilesystemBlobs) -> None:
    parts = [bytes([number % 251]) * (number % 7) for number in range(3000)]
    blobs.put(NAME, parts)
    assert blobs.get(NAME) == b"".join(parts)


def test_the_order_of_a_put(root: Path) -> None:
    """Write, fsync, rename, fsync of the directory: as the kernel is asked, in this order."""
    child = run_child(
        f"""
        import os, sys
        from pathlib import Path
        from statestore.blobs.filesystem import FilesystemBlobs
        blobs = FilesystemBlobs(Path(sys.argv[1]))
        blobs.put("00warm", [b"x"])

        def note(event, args):
            if event == "os.rename":
                print("rename", Path(args[0]).name, Path(args[1]).name)

        sys.addaudithook(note)
        fsync, write = os.fsync, os.writev
        where = lambda descriptor: os.path.basename(os.readlink(f"/proc/self/fd/{{descriptor}}"))
        os.fsync = lambda descriptor: (print("fsync", where(descriptor)), fsync(descriptor))[1]
        os.writev = lambda descriptor, data: (print("write", where(descriptor)),
                                              write(descriptor, data))[1]
        blobs.put("{NAME}", [b"x"])
        """,
        root,
    )
    assert child.returncode == 0, child.stderr
    events = child.stdout.splitlines()
    part = NAME + ".part"
    assert events == [f"write {part}", f"fsync {part}", f"rename {part} {NAME}", "fsync 00"]
