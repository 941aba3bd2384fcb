"""Leases in a SQL catalog: the database's clock, dead owners, old rows, a catalog that is busy."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from statestore.backends.base import Backend
from statestore.backends.leases import OUTCOME_S, Lease, Leases, Outcome
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.file import open_file_backend
from statestore.backends.sql.fleet import FleetPlace, open_fleet_backend
from statestore.backends.sql.leases import SqlLeases
from statestore.errors import UnavailableError
from tests.places.backend_places import a_key
from tests.places.postgres_servers import PostgresPlace
from tests.statestore.contracts.test_lease_contract import LONG_S, leases_of
from tests.statestore.workers.forked import fork, succeeded


class Catalog:
    """A store and a way to change its rows that bypasses it."""

    def __init__(self, opened: Callable[[], SqlBackend], run: Callable[[str], Any]) -> None:
        self.open = opened
        self.run = run


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    if request.param == "sqlite":

        def run(statement: str) -> None:
            with closing(sqlite3.connect(tmp_path / "catalog.sqlite3")) as connection, connection:
                connection.execute(statement)

        yield Catalog(partial(open_file_backend, tmp_path), run)
    else:
        place = PostgresPlace(tmp_path, timeout_s="20")

        def execute(statement: str) -> None:
            with place.server.connect(place.database) as connection:
                connection.execute(statement.encode())

        yield Catalog(lambda: open_fleet_backend(FleetPlace.parse(place.url)), execute)
        place.drop()


@pytest.fixture
def backend(catalog: Catalog) -> Iterator[SqlBackend]:
    backend = catalog.open()
    yield backend
    backend.close()


def test_an_outcome_is_forgotten_after_a_while(catalog: Catalog, backend: SqlBackend) -> None:
    backend.leases.acquire(a_key(0), "a", LONG_S)
    backend.leases.release(a_key(0), "a", Outcome.NOT_STORED)
    catalog.run(f"UPDATE leases SET expires_at = expires_at - {OUTCOME_S}")
    assert backend.leases.wait(a_key(0), 0.0) is None
    assert backend.leases.acquire(a_key(0), "b", LONG_S).owner == "b"


def test_a_release_removes_rows_of_long_ago(catalog: Catalog, backend: SqlBackend) -> None:
    for number in range(150):
        backend.leases.acquire(a_key(number), "a", LONG_S)
    catalog.run("UPDATE leases SET expires_at = expires_at - 1e6")
    backend.leases.acquire(a_key(150), "a", LONG_S)
    backend.leases.release(a_key(150), "a", Outcome.PUBLISHED)
    backend.leases.acquire(a_key(151), "a", LONG_S)
    backend.leases.release(a_key(151), "a", Outcome.PUBLISHED)
    left = backend._database.read(
        lambda tx: tx.exec_driver_sql("SELECT count(*) FROM leases").scalar()
    )
    assert left == 2


def test_a_host_whose_clock_is_off_agrees(
    catalog: Catalog, backend: SqlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.leases.acquire(a_key(0), "a", LONG_S)
    real = time.time
    for skew_s in (86_400.0, -86_400.0):
        monkeypatch.setattr(time, "time", lambda skew_s=skew_s: real() + skew_s)
        with closing(catalog.open()) as other:
            seen = other.leases.acquire(a_key(0), "b", LONG_S)
            assert seen.owner == "a"
            assert LONG_S - 30 < seen.remaining_s <= LONG_S


def test_sixteen_processes_and_one_of_them_computes(catalog: Catalog, tmp_path: Path) -> None:
    """All ask at the same moment; whoever holds the lease is killed; one other takes over."""
    catalog.open().close()
    asks, start = os.pipe()
    computed, computes = os.pipe()
    killing = tmp_path / "killing"

    def work(number: int) -> None:
        os.close(start)
        os.read(asks, 1)  # returns when the parent closes its end
        with closing(catalog.open()) as backend:
            owner = f"owner {number}"
            lease = until_told(backend, owner, 1.0)
            if lease.outcome is None:
                os.write(computes, b"%d\n" % os.getpid())
                if not killing.exists():
                    hold_until(killing.exists, backend, owner)
                backend.leases.renew(a_key(0), owner, LONG_S)
                backend.leases.release(a_key(0), owner, Outcome.NOT_STORED)

    children = [fork(partial(work, number)) for number in range(16)]
    os.close(asks)
    os.close(start)
    first = int(os.read(computed, 100))
    killing.touch()
    os.kill(first, signal.SIGKILL)
    assert os.waitpid(first, 0)[1] == signal.SIGKILL
    children.remove(first)
    assert succeeded(children)
    os.close(computes)
    assert len(os.read(computed, 1000).split()) == 1  # one took over, and nobody else
    os.close(computed)


def hold_until(over: Callable[[], bool], backend: SqlBackend, owner: str) -> None:
    """Renew the lease, then wait to be killed."""
    while not over():
        assert backend.leases.renew(a_key(0), owner, 1.0)
        time.sleep(0.02)
    signal.pause()


def until_told(backend: SqlBackend, owner: str, ttl_s: float) -> Lease:
    """The lease once it is `owner`'s or says that nothing was stored."""
    while True:
        lease = backend.leases.acquire(a_key(0), owner, ttl_s)
        if lease.owner == owner or lease.outcome is not None:
            return lease
        backend.leases.wait(a_key(0), LONG_S)


def test_a_fork_while_a_thread_waits(catalog: Catalog, backend: SqlBackend) -> None:
    backend.leases.acquire(a_key(0), "a", LONG_S)
    told: list[Any] = []
    waiter = threading.Thread(target=lambda: told.append(backend.leases.wait(a_key(0), LONG_S)))
    waiter.start()

    def child() -> None:
        assert backend.leases.acquire(a_key(1), "child", LONG_S).owner == "child"
        assert backend.leases.acquire(a_key(0), "child", LONG_S).owner == "a"
        assert told == []

    assert succeeded([fork(child) for _ in range(3)])
    backend.leases.release(a_key(0), "a", Outcome.PUBLISHED)
    waiter.join()
    assert told[0].outcome is Outcome.PUBLISHED


def test_waiting_does_not_hammer(backend: SqlBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = SqlLeases._look

    def counted(self: SqlLeases, key: Any) -> Any:
        looks.append(time.monotonic())
        return look(self, key)

    monkeypatch.setattr(SqlLeases, "_look", counted)
    backend.leases.acquire(a_key(0), "a", LONG_S)
    looks.clear()
    backend.leases.wait(a_key(0), 1.0)
    assert 2 <= len(looks) <= 30


@pytest.mark.parametrize("call", ["acquire", "renew", "release"])
def test_a_catalog_that_is_busy_is_not_waited_for_long(tmp_path: Path, call: str) -> None:
    backend: Backend = open_file_backend(tmp_path, patience_s=LONG_S)
    leases: Leases = leases_of(backend)
    leases.acquire(a_key(0), "a", LONG_S)
    given = Outcome.PUBLISHED if call == "release" else LONG_S
    started = time.monotonic()
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="was busy for 1 s"):
            getattr(leases, call)(a_key(0), "a", given)
        seen = leases.wait(a_key(0), 0.0)  # who only looks does not mind
        assert seen is not None
        assert leases.acquire(a_key(0), "b", LONG_S).owner == "a"
        other.execute("ROLLBACK")
    assert time.monotonic() - started < LONG_S / 2
    backend.close()


def test_an_outcome_of_a_later_release_is_no_reason_to_wait(
    catalog: Catalog, backend: SqlBackend
) -> None:
    leases = leases_of(backend)
    leases.acquire(a_key(0), "a", LONG_S)
    catalog.run("UPDATE leases SET outcome = 'postponed'")
    for seen in (leases.wait(a_key(0), LONG_S), leases.acquire(a_key(0), "b", LONG_S)):
        assert seen is not None
        assert seen.outcome is Outcome.NOT_STORED
