"""Many processes over one PostgreSQL; processes that die; a server that stops, hangs, returns."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, text

from statestore import Identity, PutOutcome, StateStore, open_store
from statestore.entry import Role
from statestore.errors import BackendError, FullError, UnavailableError
from statestore.schema import State, Tensor, rwkv7
from tests.places.backend_places import CREATED_AT, a_key, an_entry, digest, publish
from tests.places.postgres_servers import PostgresPlace, PostgresServer, wait_for_the_dead
from tests.places.soundness import check_entries, named
from tests.statestore.workers.backend_worker import KEYS, KILLS, step
from tests.statestore.workers.postgres_worker import open_backend, run_worker, start_worker
from tests.statestore.workers.redis_load import under_load

SHORT = {"timeout_s": "0.4"}
SCHEMA = rwkv7(layers=1, width=64, heads=1, head_size=64)
IDENTITY = Identity(bytes(range(32)))


@contextmanager
def row_lock(
    place: PostgresPlace, statement: str = "LOCK TABLE namespace_totals IN EXCLUSIVE MODE"
) -> Iterator[None]:
    """Another program holds locks."""
    with place.server.connect(place.database) as connection, connection.transaction():
        connection.execute(statement)
        yield


def test_many_processes_at_once(place: PostgresPlace) -> None:
    run_worker("mix", place.url, 1, 8)
    check_entries(place)
    assert place.blob_names() == named(place)


def test_of_many_writers_one_wins(place: PostgresPlace) -> None:
    won = run_worker("once", place.url, KEYS, 6).split()
    assert sorted(won) == sorted(a_key(KEYS + number).hex for number in range(20))
    check_entries(place)
    assert place.blob_names() == named(place)


def test_many_threads_over_one_backend(place: PostgresPlace) -> None:
    """More threads than connections."""
    backend = place.open()

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(20):
            step(backend, dice)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    backend.close()
    check_entries(place)
    assert place.blob_names() == named(place)


def test_sigkill_at_any_moment_leaves_at_most_orphans(place: PostgresPlace) -> None:
    orphans = 0
    for seed in range(8):
        run_worker("kill", place.url, seed, KILLS // 2)
        wait_for_the_dead(place)
        check_entries(place)
        orphans += len(place.blob_names() - named(place))
        backend = place.open()
        backend.sweep(time.time() + 1, grace_s=0)
        backend.close()
        assert place.blob_names() == named(place)
        check_entries(place)
        if seed and orphans:
            return
    raise AssertionError("the kills never met a write")


def test_a_lock_held_too_long_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    place = PostgresPlace(tmp_path, **SHORT)
    backend = place.open()
    stored = an_entry(0)
    publish(backend, stored)
    with row_lock(place):
        for write in (
            lambda: publish(backend, an_entry(1)),
            lambda: backend.delete(stored.key, "deleted"),
        ):
            with pytest.raises(UnavailableError, match=r"was busy for 0\.4 s"):
                write()
        assert backend.longest([stored.key], CREATED_AT) == stored
    assert place.blob_names() == {stored.blob}
    assert publish(backend, an_entry(1))
    backend.close()
    place.drop()


def test_a_writer_waits_for_another(place: PostgresPlace) -> None:
    backend = place.open()
    with ThreadPoolExecutor(1) as thread:
        with row_lock(place):
            outcome = thread.submit(publish, backend, an_entry(0))
            time.sleep(0.2)
            assert not outcome.done()
        assert outcome.result() is True
    backend.close()


def test_a_deadlock_is_tried_again(place: PostgresPlace) -> None:
    """Two transactions lock two rows crosswise: the server ends one of them, which starts again."""
    database = backend_database(place)
    both = threading.Barrier(2)
    runs: list[int] = []
    add = "UPDATE namespace_totals SET pinned = pinned + 1 WHERE shard = {}"
    place.query(
        "INSERT INTO namespace_totals SELECT 'n', s, 0, 0, 0, 0, 0 FROM unnest(ARRAY[1, 2]) AS s "
        "RETURNING 1"
    )

    def lock(first: int, second: int) -> None:
        def work(connection: Connection) -> None:
            runs.append(first)
            connection.execute(text(add.format(first)))
            if len(runs) <= 2:
                both.wait()
            connection.execute(text(add.format(second)))

        database.write(work)

    with ThreadPoolExecutor(2) as threads:
        for task in [threads.submit(lock, 1, 2), threads.submit(lock, 2, 1)]:
            task.result()
    database.close()
    assert len(runs) == 3
    assert place.query("SELECT sum(pinned) FROM namespace_totals") == [{"sum": 4}]


def backend_database(place: PostgresPlace) -> Any:
    backend = open_backend(place.url)
    return backend._database


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("53100", FullError, "no space left"),
        ("40001", UnavailableError, "was busy for"),
        ("40P01", UnavailableError, "was busy for"),
        ("55P03", UnavailableError, "was busy for"),
        ("42501", UnavailableError, "made by hand.*look at the server"),
        ("25006", UnavailableError, "made by hand.*target_session_attrs=read-write"),
    ],
)
def test_what_the_server_reports_is_translated(
    tmp_path: Path, code: str, kind: type[BackendError], words: str
) -> None:
    place = PostgresPlace(tmp_path, timeout_s="0.1")
    database = backend_database(place)
    tries: list[str] = []

    def work(connection: Connection) -> None:
        tries.append(code)
        connection.execute(
            text(f"DO $$ BEGIN RAISE 'made by hand' USING ERRCODE = '{code}'; END $$")
        )

    with pytest.raises(kind, match=words):
        database.write(work)
    assert (len(tries) > 1) is ("busy" in words)
    database.close()
    place.drop()


def test_a_statement_ends_at_its_deadline(tmp_path: Path) -> None:
    place = PostgresPlace(tmp_path, **SHORT)
    database = backend_database(place)
    with pytest.raises(UnavailableError, match="statement timeout"):
        database.read(lambda tx: tx.execute(text("SELECT pg_sleep(600)")))
    assert database.read(lambda tx: tx.scalar(text("SELECT 1"))) == 1
    database.close()
    place.drop()


def test_limits_are_set_in_the_session(tmp_path: Path) -> None:
    """Not by the start of the connection, whose parameters a pooler refuses."""
    place = PostgresPlace(tmp_path, **SHORT)
    database = backend_database(place)
    asked = "SELECT name, setting, source FROM pg_settings WHERE name LIKE '%\\_timeout'"
    rows = database.read(lambda tx: tx.exec_driver_sql(asked.replace("%", "%%")).all())
    found = {row.name: (int(row.setting), row.source) for row in rows if row.source != "default"}
    assert found == {
        "statement_timeout": (400, "session"),
        "lock_timeout": (200, "session"),
        "idle_in_transaction_session_timeout": (30_000, "session"),
    }
    database.close()
    place.drop()


def a_state() -> State:
    tensors = (
        Tensor.of(spec.name, spec.dtype, spec.shape, np.zeros(spec.shape, "<f4"))
        for spec in SCHEMA.tensors
    )
    return State(SCHEMA.id, tuple(tensors))


def request(store: StateStore, number: int) -> tuple[bool, PutOutcome]:
    """What a worker does: look, compute, keep. Whether it was found, and the put's outcome."""
    found = store.find(IDENTITY, [a_key(number)])
    outcome = store.put(
        IDENTITY, a_key(number), a_state(), token_digest=digest("t"), role=Role.SEGMENT
    )
    return found is not None, outcome


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (PostgresServer.stop, PostgresServer.start),
        (PostgresServer.kill, PostgresServer.start),
        (PostgresServer.pause, PostgresServer.resume),
    ],
)
def test_a_server_that_goes_and_returns(
    tmp_path: Path,
    fragile: PostgresServer,
    down: Callable[[PostgresServer], None],
    up: Callable[[PostgresServer], None],
) -> None:
    """Requests go on as misses; operators are told; the same open store works again afterwards.

    A paused server accepts connections and answers none: without deadlines this would not end.
    """
    place = PostgresPlace(tmp_path, fragile, **SHORT)
    with StateStore(open_backend(place.url)) as store:
        assert request(store, 0) == (False, PutOutcome.PUBLISHED)
        assert request(store, 0) == (True, PutOutcome.PRESENT)
        with fragile.connect() as connection:  # a crash may lose what no disk was waited for
            connection.execute("CHECKPOINT")
        down(fragile)
        try:
            for _ in range(2):
                assert request(store, 0) == (False, PutOutcome.DROPPED)
            with pytest.raises(UnavailableError, match=f"catalog .*/{place.database}: "):
                store.usage()
            with pytest.raises(UnavailableError):
                place.open()
        finally:
            up(fragile)
        assert request(store, 0) == (True, PutOutcome.PRESENT)
        assert request(store, 1) == (False, PutOutcome.PUBLISHED)
        assert store.usage().entries == 2
    assert place.blob_names() == named(place)


def test_an_idle_connection_that_broke_is_not_noticed(place: PostgresPlace) -> None:
    backend = place.open()
    publish(backend, an_entry(0))
    place.query(  # which waits until they are gone
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    assert backend.usage().entries == 1
    assert publish(backend, an_entry(1))
    backend.close()


def test_processes_outlive_two_crashes_of_the_server(
    tmp_path: Path, fragile: PostgresServer
) -> None:
    place = PostgresPlace(tmp_path, fragile)
    with start_worker("endure", place.url, 0, 3) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        news = iter(worker.stdout.readline, "")
        for end in (PostgresServer.kill, PostgresServer.stop):
            assert [next(news) for _ in range(3)] == ["up\n"] * 3
            end(fragile)
            assert [next(news) for _ in range(3)] == ["down\n"] * 3
            fragile.start()
        assert [next(news) for _ in range(3)] == ["up\n"] * 3
        worker.stdin.close()
    assert worker.returncode == 0
    wait_for_the_dead(place)
    check_entries(place)
    backend = place.open()
    backend.sweep(time.time() + 1, grace_s=0)
    backend.close()
    assert place.blob_names() == named(place)


def reads_only(server: PostgresServer) -> None:
    """As managed servers do it for a planned switch: connections stay."""
    with server.connect() as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")


def writes_again(server: PostgresServer) -> None:
    with server.connect() as connection:
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize(
    ("fall", "rise"),
    [(PostgresServer.kill, PostgresServer.start), (reads_only, writes_again)],
    ids=["crash", "switch"],
)
def test_a_failover_in_mid_load(
    tmp_path: Path,
    fragile: PostgresServer,
    fall: Callable[[PostgresServer], None],
    rise: Callable[[PostgresServer], None],
) -> None:
    """The URL names both servers, and the one that writes is found."""
    place = PostgresPlace(tmp_path, fragile)
    standby = PostgresServer(fragile)
    standby.start()
    both = f"host=127.0.0.1,127.0.0.1&port={standby.port},{fragile.port}"
    url = place.url.replace(f"127.0.0.1:{fragile.port}", "")
    try:
        with (
            open_store(f"{url}&{both}&target_session_attrs=read-write") as store,
            under_load(store) as load,
        ):
            fall(fragile)
            load.until(5, "dropped")
            standby.promote()
            load.until(5, "published")
            load.until(5, "hit")
    finally:
        standby.remove()
        rise(fragile)
