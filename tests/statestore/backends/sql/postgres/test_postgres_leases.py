"""How those who wait on PostgreSQL hear of a release: one connection for all, while they wait."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from sqlalchemy import event

from statestore.backends.leases import Lease, Outcome
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.fleet import FleetPlace, open_fleet_backend
from tests.places.backend_places import a_key
from tests.places.postgres_servers import PostgresPlace

LONG_S = 60.0
A = "host:1:a"


def lines(place: PostgresPlace) -> list[int]:
    """The server's processes that serve a listener."""
    rows = place.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND query LIKE 'LISTEN%'"
    )
    return [row["pid"] for row in rows]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waiting(backend: SqlBackend, pool: ThreadPoolExecutor) -> Callable[[], Lease | None]:
    return pool.submit(lambda: backend.leases.wait(a_key(0), LONG_S)).result


def test_all_who_wait_hear_by_one_connection(place: PostgresPlace, backend: SqlBackend) -> None:
    backend.leases.acquire(a_key(0), A, LONG_S)
    with ThreadPoolExecutor(6) as pool:
        results = [waiting(backend, pool) for _ in range(6)]
        until(lambda: lines(place))
        assert len(lines(place)) == 1
        backend.leases.release(a_key(0), A, Outcome.PUBLISHED)
        for result in results:
            lease = result()
            assert lease is not None
            assert lease.outcome is Outcome.PUBLISHED
    until(lambda: not lines(place))


def test_another_process_of_the_fleet_is_heard(place: PostgresPlace, backend: SqlBackend) -> None:
    with closing(open_fleet_backend(FleetPlace.parse(place.url))) as other:
        other.leases.acquire(a_key(0), A, LONG_S)
        with ThreadPoolExecutor(1) as pool:
            result = waiting(backend, pool)
            until(lambda: lines(place))
            other.leases.release(a_key(0), A, Outcome.NOT_STORED)
            lease = result()
    assert lease is not None
    assert lease.outcome is Outcome.NOT_STORED


def test_who_listens_does_not_ask(place: PostgresPlace, backend: SqlBackend) -> None:
    """In the time that polling would ask a dozen times."""
    with closing(open_fleet_backend(FleetPlace.parse(place.url))) as other:
        other.leases.acquire(a_key(0), A, LONG_S)
        with ThreadPoolExecutor(1) as pool:
            result = waiting(backend, pool)
            until(lambda: lines(place))
            statements = backend_statements(backend)
            time.sleep(0.9)
            asked = len(statements)
            other.leases.release(a_key(0), A, Outcome.PUBLISHED)
            result()
    assert asked <= 2


def backend_statements(backend: SqlBackend) -> list[str]:
    seen: list[str] = []
    for engine in backend._database._engines.values():
        event.listen(
            engine, "before_cursor_execute", lambda *arguments: seen.append(str(arguments[2]))
        )
    return seen


def test_a_line_that_breaks_loses_no_release(place: PostgresPlace, backend: SqlBackend) -> None:
    backend.leases.acquire(a_key(0), A, LONG_S)
    with ThreadPoolExecutor(2) as pool:
        results = [waiting(backend, pool) for _ in range(2)]
        until(lambda: lines(place))
        for pid in lines(place):
            place.query(f"SELECT pg_terminate_backend({pid})")
        backend.leases.release(a_key(0), A, Outcome.PUBLISHED)
        assert all(result() is not None for result in results)


def test_a_forked_child_leaves_its_parents_line_alone(
    place: PostgresPlace, backend: SqlBackend
) -> None:
    backend.leases.acquire(a_key(0), A, LONG_S)
    with ThreadPoolExecutor(1) as pool:
        result = waiting(backend, pool)
        until(lambda: lines(place))
        before = lines(place)
        child = os.fork()
        if not child:
            status = 1
            try:
                seen = backend.leases.wait(a_key(0), 0.3)
                status = 0 if seen is not None and seen.owner == A else 1
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert before[0] in lines(place)
        backend.leases.release(a_key(0), A, Outcome.PUBLISHED)
        assert result() is not None
