"""A directory that may only be read: lookups work, and what would write says why it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from statestore import open_store
from statestore.backends.lookups import lookups_of
from statestore.backends.sightings import sightings_of
from statestore.backends.sql.reading import open_for_reading
from statestore.backends.sql.revisions import Standing
from statestore.errors import BackendError, SchemaVersionError, UnavailableError
from statestore.settings import open_revisions
from statestore.store import PutOutcome, StateStore
from tests.checkout import ROOT
from tests.places.backend_places import a_key
from tests.places.states import OURS, put
from tests.statestore.workers.commanded import run

STATES = 5


@contextmanager
def seen_only(root: Path, at: Path) -> Iterator[Path]:
    """The directory `root` a second time, mounted for reading: as a container has it."""
    at.mkdir()
    mounted = os.geteuid() == 0 and not os.system(f"mount --bind {root} {at}")
    if not mounted or os.system(f"mount -o remount,bind,ro {at}"):
        pytest.skip("not run: nothing can be mounted for reading here, only root may")
    try:
        yield at
    finally:
        assert os.system(f"umount -l {at}") == 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store that nobody has open."""
    root = tmp_path / "states"
    with open_store(root.as_uri()) as store:
        for number in range(STATES):
            put(store, number)
    assert not (root / "catalog.sqlite3-wal").exists()
    return root


@pytest.fixture
def view(root: Path, tmp_path: Path) -> Iterator[Path]:
    with seen_only(root, tmp_path / "view") as view:
        yield view


def found(store: StateStore, number: int) -> bool:
    return store.get(OURS, a_key(number)) is not None


def test_all_that_reads_works(view: Path) -> None:
    with open_store(view.as_uri()) as store:
        assert all(found(store, number) for number in range(STATES))
        assert not found(store, STATES)
        assert len(list(store.list())) == store.usage().entries == STATES
        assert store.metrics.value("errors_total", operation="touch") == 0
        assert store.leases is None
        assert sightings_of(store.backend) is None
        assert lookups_of(store.backend) is None


def test_a_put_is_dropped_and_counted(view: Path) -> None:
    with open_store(f"{view.as_uri()}?budget=1MiB") as store:
        assert put(store, STATES) is PutOutcome.DROPPED
        assert put(store, 0) is PutOutcome.PRESENT
        assert store.metrics.value("puts_total", outcome="dropped") == 1


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.backend.evict(0, 0.0),
        lambda store: store.delete(a_key(0)),
        lambda store: store.update(a_key(0), pinned=True),
    ],
)
def test_what_writes_says_why_not(view: Path, write: object) -> None:
    assert callable(write)
    with (
        open_store(view.as_uri()) as store,
        pytest.raises(UnavailableError, match=r"readonly database; mount it for writing, or give"),
    ):
        write(store)


def test_commands(view: Path, tmp_path: Path) -> None:
    archive = tmp_path / "states.rwkvar"
    for arguments in (["ls"], ["stats"], ["verify"], ["export", str(archive)], ["db", "current"]):
        done = run("--store", str(view), *arguments)
        assert done.returncode == 0, done.stderr
    assert f"{STATES} " in run("--store", str(tmp_path / "new"), "import", str(archive)).stdout
    for arguments in (["evict", "--to", "0", "--yes"], ["gc"], ["pin", a_key(0).hex[:12], "-y"]):
        done = run("--store", str(view), *arguments)
        assert done.returncode == BackendError.exit_code
        assert "mount it for writing" in done.stderr


def test_damage_is_stepped_over(root: Path, view: Path) -> None:
    """It cannot be put aside here; whoever may write does."""
    for blob in root.glob("blobs/*/*"):
        blob.write_bytes(blob.read_bytes()[:-1])
    with open_store(view.as_uri()) as store:
        assert not found(store, 0)
    assert run("--store", str(view), "verify").returncode == 3


def test_what_others_write_meanwhile_is_seen(root: Path, view: Path) -> None:
    """Through their log while there is one; and when they have gone, and come back."""
    with open_store(view.as_uri()) as store:
        for number in range(STATES, STATES + 20):
            with open_store(root.as_uri()) as writer:
                put(writer, number)
                assert found(store, number)
                put(writer, number + 100)
                assert found(store, number + 100)
                assert writer.delete(a_key(number + 100))
                assert not found(store, number + 100)
            assert found(store, number)
            assert store.usage().entries == number + 1


def test_a_reader_beside_writers_that_come_and_go(root: Path, view: Path) -> None:
    """Each state is there from the moment that its writer has said so, and no lookup fails."""
    code = """
        import sys
        from statestore import open_store
        from tests.places.states import put

        for number in range(100, 160):
            with open_store(sys.argv[1]) as store:
                put(store, number)
                print(number, flush=True)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), root.as_uri()]
    with (
        subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer,
        open_store(view.as_uri()) as store,
    ):
        assert writer.stdout is not None
        for told, line in enumerate(writer.stdout, STATES + 1):
            assert found(store, int(line))
            assert store.usage().entries >= told
        assert store.metrics.value("errors_total", operation="find") == 0
    assert writer.returncode == 0
    assert told == STATES + 60


def test_what_changes_while_it_is_read_is_read_again(root: Path, view: Path) -> None:
    database = open_for_reading(view / "catalog.sqlite3", 30.0)
    counts: list[int] = []

    def work(connection: Connection) -> int:
        counts.append(connection.scalar(text("SELECT count(*) FROM entries")))
        if len(counts) == 1:
            with open_store(root.as_uri()) as writer:
                put(writer, 60)
        return counts[-1]

    assert database.read(work) == STATES + 1
    assert counts == [STATES, STATES + 1]
    database.close()


def test_what_a_dead_writer_left(root: Path, view: Path) -> None:
    """With its log's index it is read; without, SQLite cannot, and the error says who can."""
    code = """
        import os, sys
        from statestore import open_store
        from tests.places.states import put

        store = open_store(sys.argv[1])
        put(store, 50)
        os._exit(0)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), root.as_uri()]
    subprocess.run(arguments, cwd=ROOT, check=True)
    with open_store(view.as_uri()) as store:
        assert found(store, 50)
    (root / "catalog.sqlite3-shm").unlink()
    with pytest.raises(UnavailableError, match="where the store may be written"):
        open_store(view.as_uri())
    open_store(root.as_uri()).close()
    with open_store(view.as_uri()) as store:
        assert found(store, 50)


def test_an_older_catalog_is_not_upgraded(root: Path, view: Path) -> None:
    with open_revisions(root.as_uri()) as revisions:
        revisions.downgrade("0007")
    with pytest.raises(SchemaVersionError, match="db upgrade` where it may be written"):
        open_store(view.as_uri())
    with open_revisions(view.as_uri()) as revisions:
        assert revisions.status().standing is Standing.OLDER
        with pytest.raises(UnavailableError, match="mount it for writing"):
            revisions.upgrade()


def test_the_doctor_opens_it_twice_and_says_so_once(view: Path) -> None:
    done = run("--store", str(view), "doctor")
    assert "not healthy" in done.stdout
    assert done.stderr.count("may only be read here") == 1


@pytest.fixture
def anybodys(root: Path) -> Iterator[Path]:
    """The store where everybody comes by, to be read alone; pytest closes its own directories."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        copy = Path(directory, "states")
        shutil.copytree(root, copy)
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield copy
        for path in (copy, *copy.rglob("*")):
            path.chmod(0o755)


def test_another_users_directory(anybodys: Path) -> None:
    code = """
        import os, sys
        import statestore.backends.sql.file  # while the interpreter's own files may be read
        from statestore import open_store
        from tests.places.backend_places import a_key
        from tests.places.states import OURS, put

        if os.geteuid() == 0:
            os.setuid(65534)  # what is forbidden to others is allowed to root
        with open_store(sys.argv[1]) as store:
            print(store.get(OURS, a_key(0)) is not None, put(store, 99))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), anybodys.as_uri()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "dropped"]
    assert "may only be read here" in done.stderr
