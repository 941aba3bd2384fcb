"""A file store over a system that fails, call by call: an answer is right or a miss, a put is there
or was dropped, and once the system is well again so is the store, without being opened anew.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places.backend_places import FilePlace
from tests.places.faulty_system import HALF, NOTHING, FaultySystem, WorkerError, shared_systems

CATALOG = "/catalog.sqlite3"
BLOBS = "/blobs/"
#: What a disk does when it fails, the table of open files when it is full, and so on.
WRONG = (errno.EIO, errno.ENOSPC, errno.EMFILE)


@pytest.fixture
def other() -> FaultySystem:
    return shared_systems(2)[1]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[FaultySystem]:
    """With states 0 and 1 in a store that is open."""
    (process,) = shared_systems(1)
    process.ask(f"reopen({(tmp_path / 'store').as_uri()!r})")
    for number in (0, 1):
        assert process.ask(f"put({number})") == "published"
        assert process.ask(f"find({number})") == number
    yield process
    process.heal()
    process.ask("close()")


@pytest.fixture
def place(tmp_path: Path) -> FilePlace:
    return FilePlace(tmp_path / "store")


def check_well(system: FaultySystem, place: FilePlace) -> None:
    """Everything works, and nothing is left behind that a sweep does not take."""
    system.heal()
    for number in (0, 1, 2):
        assert system.ask(f"put({number})") in {"published", "present"}
        assert system.ask(f"find({number})") == number
    system.ask("sweep()")
    rows = place.rows()
    assert place.blob_names() == {row["blob"] for row in rows}
    sizes = sum(row["blob_bytes"] for row in rows)
    assert system.ask("usage()") == (3, sizes, 0)
    assert system.ask("store.backend.recount(mend=False)")


@pytest.mark.parametrize("error", WRONG)
@pytest.mark.parametrize("call", ["open", "read"])
def test_a_blob_that_cannot_be_read_is_a_miss(
    system: FaultySystem, place: FilePlace, call: str, error: int
) -> None:
    """What speaks against one file bars its state; what speaks against the system does not."""
    rule = system.fail(call, BLOBS, error)
    assert system.ask("find(1, 0)") is None
    assert system.met(rule) == (2 if error == errno.EIO else 1)
    kind = "quarantined" if error == errno.EIO else "errors"
    label = "cause='CorruptError'" if error == errno.EIO else "operation='find'"
    assert system.ask(f"count('{kind}_total', {label})") >= 1
    assert system.ask("usage()")[2] == (2 if error == errno.EIO else 0)
    system.heal()
    assert system.ask("find(1, 0)") == (None if error == errno.EIO else 1)
    check_well(system, place)


def test_a_blob_that_is_cut_while_it_is_read_is_a_miss(
    system: FaultySystem, place: FilePlace
) -> None:
    """Its size was known before: then there is no more of it."""
    system.fail("read", BLOBS, NOTHING, after=1)
    system.fail("read", BLOBS, HALF)
    assert system.ask("find(1, 0)") is None
    assert system.ask("count('quarantined_total', cause='TruncatedError')") == 2
    check_well(system, place)


def test_of_two_states_the_readable_one_is_found(system: FaultySystem, place: FilePlace) -> None:
    (name,) = (row["blob"] for row in place.rows() if row["n_tokens"] == 2)
    system.fail("read", name, errno.EIO)
    assert system.ask("find(1, 0)") == 0
    check_well(system, place)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        *((call, errno.EIO) for call in ("open", "write", "sync", "rename", "mkdir")),
        *(("write", error) for error in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, NOTHING)),
        *(("open", error) for error in (errno.ENOSPC, errno.EMFILE, errno.EROFS)),
    ],
)
def test_a_blob_that_cannot_be_written_is_dropped(
    system: FaultySystem, place: FilePlace, call: str, error: int
) -> None:
    before = place.blob_names()
    rule = system.fail(call, BLOBS, error)
    dropped = system.ask("count('puts_total', outcome='dropped')")
    assert system.ask("put(2)") == "dropped"
    assert system.met(rule)
    assert system.ask("count('puts_total', outcome='dropped')") == dropped + 1
    assert place.blob_names() == before
    if call != "open":
        assert system.ask("find(2, 1)") == 1
    check_well(system, place)


def test_a_directory_that_cannot_be_synced_leaves_no_blob(
    system: FaultySystem, place: FilePlace
) -> None:
    """Renamed already, and perhaps not there after a power cut: so it goes."""
    before = place.blob_names()
    system.fail("sync", f"{BLOBS}", errno.EIO, after=1)  # the file's own goes well
    system.ask("find(0)")
    assert system.ask("put(1, ttl_s=1.0)") == "present"
    assert system.ask("put(2)") == "dropped"
    assert place.blob_names() == before
    check_well(system, place)


@pytest.mark.parametrize(
    ("call", "unusual"),
    [
        *(("read", each) for each in (HALF, errno.EINTR)),
        *(("write", each) for each in (HALF, errno.EINTR)),
        *((call, errno.EINTR) for call in ("sync", "open")),
    ],
)
def test_what_falls_short_or_is_interrupted_goes_on(
    system: FaultySystem, place: FilePlace, call: str, unusual: int
) -> None:
    rules = [system.fail(call, part, unusual, times=40) for part in (BLOBS, CATALOG)]
    assert system.ask("put(2)") == "published"
    assert system.ask("find(2)") == 2
    assert system.met(rules[0])
    assert system.ask("usage()")[0::2] == (3, 0)
    check_well(system, place)


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_a_catalog_that_cannot_be_written_drops_puts(
    system: FaultySystem, place: FilePlace, error: int, after: int
) -> None:
    """Wherever within a commit it fails: the state is there, or it is not. A hit is one all the
    same: that it could not be noted is nobody's concern.
    """
    rule = system.fail("write", CATALOG, error, after=after)
    for number in (2, 3):
        outcome = system.ask(f"put({number})")
        assert outcome == "dropped" or not system.met(rule) or after
        found = system.ask(f"find({number}, 1)")
        assert found in {number, 1}
        assert (found == number) == (outcome == "published")
    assert system.met(rule)
    assert place.blob_names() == {row["blob"] for row in place.rows()}
    system.heal()
    system.ask("store.delete(a_key(3))")
    check_well(system, place)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_catalog_that_cannot_be_read_is_a_miss(
    other: FaultySystem, system: FaultySystem, place: FilePlace, after: int
) -> None:
    """With another connection's pages in nobody's cache."""
    other.ask(f"reopen({place.root.as_uri()!r})")
    other.ask("[put(number) for number in range(10, 15)]")  # what is cached is stale
    rule = system.fail("read", CATALOG, errno.EIO, after=after)
    assert system.ask("find(11, 1)") in {None, 11}
    assert system.ask("put(2)") in {"published", "dropped"}
    assert system.met(rule)
    system.heal()
    assert system.ask("find(11)") == 11
    other.ask("[store.delete(a_key(number)) for number in range(10, 15)]")
    other.ask("close()")
    check_well(system, place)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        ("sync", f"{CATALOG}-wal$"),
        ("sync", f"{CATALOG}$"),
        ("write", f"{CATALOG}$"),
        ("resize", f"{CATALOG}$"),
        ("unlink", f"{CATALOG}-wal$"),
    ],
)
def test_a_log_that_cannot_be_brought_in_is_kept(
    system: FaultySystem, place: FilePlace, call: str, part: str
) -> None:
    """Who closes a store last writes the log into the catalog: it fails, and nothing is lost."""
    rule = system.fail(call, part, errno.EIO)
    system.ask("close()")
    assert system.met(rule) or call == "resize"
    for _ in range(2):
        system.ask(f"reopen({place.root.as_uri()!r})")
        assert system.ask("find(1)") == 1
        assert system.ask("find(0)") == 0
        system.heal()
    check_well(system, place)


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_a_catalog_that_cannot_be_opened_is_named(
    system: FaultySystem, place: FilePlace, error: int
) -> None:
    system.ask("close()")
    system.fail("open", CATALOG, error)
    with pytest.raises(WorkerError, match=r"UnavailableError: .*catalog.sqlite3"):
        system.ask(f"reopen({place.root.as_uri()!r})")
    system.heal()
    system.ask(f"reopen({place.root.as_uri()!r})")
    assert system.ask("find(1, 0)") == 1
    check_well(system, place)


@pytest.mark.parametrize("call", ["open", "resize", "rename"])
def test_a_filter_that_cannot_be_made_is_done_without(
    system: FaultySystem, place: FilePlace, call: str
) -> None:
    system.ask("close()")
    name = "catalog.sqlite3-filter"
    (place.root / name).unlink()
    rule = system.fail(call, name, errno.ENOSPC)
    system.ask(f"reopen({place.root.as_uri()!r})")
    assert system.ask("put(2)") == "published"
    assert system.ask("find(2, 1)") == 2
    assert system.ask("find(3, 0)") == 0
    assert system.met(rule)
    check_well(system, place)


def test_a_removal_whose_blob_cannot_be_unlinked_is_one(
    system: FaultySystem, place: FilePlace
) -> None:
    rule = system.fail("unlink", BLOBS, errno.EIO)
    assert system.ask("store.delete(a_key(1))")
    assert system.met(rule)
    assert system.ask("find(1)") is None
    assert len(place.blob_names()) == 2
    system.heal()
    assert system.ask("sweep()") == (1, 0)
    check_well(system, place)
