"""Questions to PostgreSQL on the caller's thread: as right as the usual ones, and in time."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from statestore.backends.base import NotAtHandError
from statestore.backends.sql import wire
from statestore.backends.sql.cached import CachedBlobs
from statestore.backends.sql.mounts import LOCAL, file_system
from statestore.backends.sql.sightings import SqlSightings
from statestore.backends.wrappers.budget import Budget
from statestore.backends.wrappers.budgeted import Budgeted
from statestore.backends.wrappers.deadline import Deadlines
from statestore.backends.wrappers.guarded import Guarded
from statestore.blobs.base import NotCachedError
from statestore.blobs.filesystem import FilesystemBlobs
from statestore.errors import ClosedError, UnavailableError
from statestore.eviction import DEFAULT, make_policy
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, digest, publish
from tests.places.postgres_servers import PostgresPlace, PostgresServer
from tests.statestore.workers.postgres_worker import open_backend

NOW = CREATED_AT
MARKS = [digest(f"mark {place}")[:12] for place in range(40)]


def end_connections(place: PostgresPlace) -> None:
    place.query(  # which waits until they are gone
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_the_same_answers(backend: Any) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    for keys in (
        [a_key(1), a_key(0)],
        [a_key(0)],
        [a_key(number) for number in range(200, -1, -1)],
    ):
        assert backend.longest_within(keys, NOW, 60.0) == backend.longest(keys, NOW) == entry
    assert backend.longest_within([a_key(1), a_key(2)], NOW, 60.0) is None
    backend.sightings.note(MARKS[:25])
    assert backend.sightings.seen_within(MARKS, 60.0) == backend.sightings.seen(MARKS) == 25
    assert backend.sightings.seen_within([], 60.0) == 0


def test_a_connection_is_neither_opened_nor_waited_for(place: PostgresPlace, backend: Any) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    assert backend.longest_within([entry.key], NOW, 60.0) == entry
    end_connections(place)
    with pytest.raises(NotAtHandError):
        backend.longest_within([entry.key], NOW, 60.0)
    assert not place.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    assert backend.longest([entry.key], NOW) == entry
    assert backend.longest_within([entry.key], NOW, 60.0) == entry


def test_many_threads_are_all_answered(backend: Any) -> None:
    """More than there are connections."""
    entry = an_entry(0)
    publish(backend, entry)
    guard = Guarded(backend, Deadlines(60.0, 60.0))
    with ThreadPoolExecutor(24) as threads:
        found = list(threads.map(lambda _: guard.longest([entry.key], NOW), range(400)))
    assert found == [entry] * 400
    guard.close()


def test_a_server_that_stops_costs_the_limit(tmp_path: Path, fragile: PostgresServer) -> None:
    """Not the 30 s that the driver would wait."""
    place = PostgresPlace(tmp_path, fragile, timeout_s="30")
    with closing(open_backend(f"{place.url}&find_ms=0")) as backend:
        entry, index = an_entry(0), SqlSightings(backend._database)
        publish(backend, entry)
        fragile.pause()
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="no answer within"):
            backend.longest_within([entry.key], NOW, 0.05)
        assert time.monotonic() - began < 15
        fragile.resume()
        assert backend.longest([entry.key], NOW) == entry
        fragile.pause()
        with pytest.raises(UnavailableError, match="no answer within"):
            index.seen_within(MARKS, 0.05)
        fragile.resume()
        assert index.seen(MARKS) == 0
        assert backend.longest_within([entry.key], NOW, 60.0) == entry
    place.drop()


def test_a_short_limit_is_of_its_call_alone(backend: Any) -> None:
    """The connection has its own time again for the next."""
    ask = backend._database._shortcut.rows
    assert ask("SELECT 1", {}) == [(1,)]
    assert ask("SELECT 2", {}, time.monotonic() + 1) == [(2,)]
    assert ask("SELECT pg_sleep(1.5)", {})
    with pytest.raises(DBAPIError, match="no answer within"):
        ask("SELECT pg_sleep(60)", {}, time.monotonic() + 0.02)
    with pytest.raises(NotAtHandError):  # what was left behind is not asked again
        ask("SELECT 3", {}, time.monotonic() + 60)
    assert ask("SELECT 4", {}) == [(4,)]


def test_a_plan_is_made_anew_and_the_old_one_let_go(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server keeps a plan for the table as it was: a small one is read from end to end."""
    known = "SELECT name FROM pg_prepared_statements WHERE statement LIKE 'WITH RECURSIVE%%'"
    ask = backend._database._shortcut.rows
    keys = [a_key(number) for number in range(3)]
    entry = an_entry(2)
    publish(backend, entry)
    for plan_s, names in ((0.0, 5), (60.0, 1)):
        monkeypatch.setattr(wire, "PLAN_S", plan_s)
        backend._database._shortcut._idle[0].wire._began = time.monotonic() + 60  # open no while
        met = set()
        for _ in range(5):
            assert backend.longest(keys, NOW) == entry
            ((name,),) = ask(known, {})
            met.add(name)
        assert len(met) == names


@pytest.mark.parametrize("plan_s", [60.0, 0.0])
@pytest.mark.parametrize(
    "statement", ["DEALLOCATE ALL", "ALTER TABLE entries ALTER COLUMN model TYPE varchar(600)"]
)
def test_a_plan_that_is_of_no_use_any_more_is_made_anew(
    backend: Any, monkeypatch: pytest.MonkeyPatch, statement: str, plan_s: float
) -> None:
    """What the driver does after a rollback lets go of ours too; others alter tables."""
    entry = an_entry(0)
    publish(backend, entry)
    (kept,) = backend._database._shortcut._idle
    kept.wire._began = time.monotonic() + 60  # open no while
    kept.wire._prepared.clear()
    monkeypatch.setattr(wire, "PLAN_S", plan_s)
    assert backend.longest([entry.key], NOW) == entry
    kept.connection.driver_connection.execute(statement)
    assert backend.longest_within([entry.key], NOW, 60.0) == entry
    assert backend.longest([entry.key], NOW) == entry
    assert backend._database._shortcut._idle == [kept]


def test_moments_may_be_whole_numbers(backend: Any) -> None:
    """Those of a clock that tells seconds, beside those of one that tells parts of them."""
    entry = an_entry(0, created_at=int(CREATED_AT))
    publish(backend, an_entry(1))
    publish(backend, entry)
    for now in (NOW, int(NOW), NOW):
        assert backend.longest([entry.key], now) == entry
        assert backend.longest([a_key(2), entry.key], now) == entry


@pytest.mark.parametrize("within", [None, Budget(1 << 30)])
def test_a_guard_asks_on_the_callers_thread(backend: Any, within: Budget | None) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    inner = backend if within is None else Budgeted(backend, within, make_policy(DEFAULT))
    guard = Guarded(inner, Deadlines(20.0, 20.0))
    assert guard.longest([entry.key], NOW) == entry
    assert guard.sightings is not None
    assert guard.sightings.seen(MARKS) == 0
    assert guard._threads.running == 0
    assert bytes(guard.read(entry) or b"") == a_blob(entry.key)  # a directory keeps no deadline
    assert guard._threads.running == 1
    guard.close()
    with pytest.raises(ClosedError):
        backend.longest_within([entry.key], NOW, 60.0)


def test_what_the_system_has_in_memory_is_read_on_the_callers_thread(
    tmp_path: Path, backend: Any
) -> None:
    """On a local disk; once something was read from there, so that it is known to be one."""
    entry, root = an_entry(0), tmp_path / "blobs"
    publish(backend, entry)
    with pytest.raises(NotAtHandError):
        backend.read_within(entry, 60.0)
    assert bytes(backend.read(entry)) == a_blob(entry.key)
    if file_system(root) not in LOCAL:
        pytest.skip("the tests' directory is on no local disk")
    for _ in range(2):
        assert bytes(backend.read_within(entry, 60.0)) == a_blob(entry.key)
    path = root / entry.blob[:2] / entry.blob
    path.unlink()
    assert backend.read_within(entry, 60.0) is None
    path.symlink_to("/sys/kernel/uevent_seqnum")  # a file whose system cannot tell
    assert bytes(backend.read(entry)).strip().isdigit()
    with pytest.raises(NotAtHandError):
        backend.read_within(entry, 60.0)


def test_what_a_disk_must_be_waited_for_is_not_at_hand(tmp_path: Path) -> None:
    blobs, path = FilesystemBlobs(tmp_path), tmp_path / "ab" / "ab12"
    blobs.put("ab12", [bytes(1 << 20)])
    for _ in range(20):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            assert bytes(blobs.get_cached("ab12") or b"") == bytes(1 << 20)
        except NotCachedError:
            break
    else:
        pytest.skip("this file system forgets nothing")
    assert bytes(blobs.get("ab12") or b"") == bytes(1 << 20)
    assert bytes(blobs.get_cached("ab12") or b"") == bytes(1 << 20)


def test_of_other_file_systems_nothing_is_at_hand(tmp_path: Path) -> None:
    blobs = FilesystemBlobs(tmp_path)
    blobs.put("ab12", [b"a blob"])
    cached = CachedBlobs(blobs, Path("/proc"))
    for _ in range(2):
        with pytest.raises(NotAtHandError):
            cached.get("ab12", 100)
        cached.look()
