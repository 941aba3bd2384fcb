"""Faults of a store in mid-load: no failed request, no wrong bit, no hang, and hits come back."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from rwkv_runtime import load_engine
from rwkv_runtime.engines import Engine
from statestore import ChunkRule, StateStore, open_store
from statestore.backends.sql.file import open_file_backend
from statestore.backends.wrappers.breaker import Pauses
from statestore.backends.wrappers.faulty import (
    Chance,
    Delay,
    Fail,
    Fault,
    Faulty,
    FlipBit,
    Lose,
    Truncate,
)
from statestore.backends.wrappers.guarded import Guarded
from statestore.errors import FullError, UnavailableError
from tests.places.postgres_servers import PostgresPlace, PostgresServer
from tests.places.redis_servers import RedisServer, running
from tests.runtime.session.store_load import THREADS, Load

RULE = ChunkRule(chunk=16, min_chunk=4, stride=2)
SOON = Pauses(0.05, 0.5)
SOME = 15  # requests or hits


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[Engine]:
    """Computes on one thread: there are enough of them that ask."""
    threads = torch.get_num_threads()
    yield load_engine(model_path, rule=RULE, threads=1)
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Each call that goes on without the store is logged; here they are thousands."""
    caplog.set_level(logging.CRITICAL)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def load(engine: Engine, redis: RedisServer) -> Iterator[Load]:
    with Load(engine, open_store(redis.url)) as load:
        load.wait_for(hits=SOME)
        yield load


@pytest.fixture
def patient(engine: Engine, redis: RedisServer) -> Iterator[Load]:
    """For faults that are answers: a busy machine is not to look like a slow server."""
    with Load(engine, open_store(f"{redis.url}?find_ms=20000&fetch_ms=20000")) as load:
        load.wait_for(hits=SOME)
        yield load


def refused(load: Load) -> float:
    """Lookups and fetches that a breaker refused."""
    return sum(load.value("short_circuited_total", operation=o) for o in ("longest", "read"))


def costs_each_thread_one_deadline(load: Load, fault: Callable[[], None]) -> None:
    """From the fault on lookups fail, and all but the first of them at once."""
    failed, before = load.value("lookups_total", outcome="error"), refused(load)
    fault()
    load.wait_until(lambda: refused(load) > before)
    load.wait_for(5 * SOME)
    # Read before the refusals, since a refusal is counted before the lookup that it fails.
    failed = load.value("lookups_total", outcome="error") - failed
    assert failed - (refused(load) - before) <= THREADS


# Redis


def test_redis_stopped_and_started(load: Load, redis: RedisServer) -> None:
    costs_each_thread_one_deadline(load, redis.stop)
    redis.start()
    load.wait_for(hits=SOME)


def test_redis_paused(load: Load, redis: RedisServer) -> None:
    costs_each_thread_one_deadline(load, redis.pause)
    redis.go_on()
    load.wait_for(hits=SOME)


def test_redis_restarted(patient: Load, redis: RedisServer) -> None:
    for _ in range(3):
        redis.stop()
        redis.start()
        patient.wait_for(SOME)
    patient.wait_for(hits=SOME)


def test_redis_flushed(patient: Load, redis: RedisServer) -> None:
    for _ in range(10):
        with redis.client() as client:
            client.flushall()
        patient.wait_for(5)
    patient.wait_for(hits=SOME)
    assert patient.value("lookups_total", outcome="error") == 0, "what was flushed is a miss"
    assert patient.value("errors_total", operation="find") == 0


def test_redis_out_of_memory(patient: Load, redis: RedisServer) -> None:
    with redis.client() as client:
        client.config_set("maxmemory", 1 << 20)  # below what it holds already
        dropped = patient.value("puts_total", outcome="dropped")
        patient.wait_until(lambda: patient.value("puts_total", outcome="dropped") > dropped + 3)
        patient.wait_for(hits=SOME)  # what is stored is still read
        assert (
            patient.value("breaker_openings_total", place=patient.store.backend.url, calls="all")
            == 0
        )
        stored = patient.value("puts_total", outcome="published")
        client.config_set("maxmemory", 0)
    patient.wait_until(lambda: patient.value("puts_total", outcome="published") > stored + 3)
    patient.wait_for(hits=SOME)


# A directory


@contextmanager
def small_disk(root: Path) -> Iterator[Path]:
    """A file system of 4 MiB of its own."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", root],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"not run: {mounted.stderr.strip()}; a limit of the process stands in below")
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


def lose_and_find_room(load: Load, fill: Callable[[], None], empty: Callable[[], None]) -> None:
    """Puts are dropped while there is no room, reads go on, and puts come back with the room."""
    fill()
    dropped = load.value("puts_total", outcome="dropped")
    load.wait_until(lambda: load.value("puts_total", outcome="dropped") > dropped + 3)
    load.wait_for(hits=SOME)
    empty()
    stored = load.value("puts_total", outcome="published")
    load.wait_until(lambda: load.value("puts_total", outcome="published") > stored + 3)
    load.wait_for(hits=SOME)


def test_a_full_disk(engine: Engine, tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk, Load(engine, open_store((disk / "s").as_uri())) as load:
        load.wait_for(hits=SOME)

        def fill() -> None:
            with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)) == 4096:
                    pass

        lose_and_find_room(load, fill, lambda: truncate_all(disk))


def truncate_all(disk: Path) -> None:
    """Room again: the filler, and what the load itself had filled the disk with."""
    (disk / "filler").unlink()
    for blob in sorted(disk.glob("s/blobs/*/*"))[::2]:
        blob.unlink(missing_ok=True)


def test_a_limit_on_the_size_of_files(engine: Engine, tmp_path: Path) -> None:
    """A real limit of the system, as a quota is: no file grows beyond 16 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with Load(engine, open_store(tmp_path.as_uri())) as load:
        load.wait_for(hits=SOME)
        try:
            lose_and_find_room(load, limit(16 << 10), limit(soft))
        finally:
            limit(soft)()


HOLD = """
import sqlite3, sys
catalog = sqlite3.connect(sys.argv[1], isolation_level=None)
catalog.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_catalog_locked_by_another_process(engine: Engine, tmp_path: Path) -> None:
    store = StateStore(open_file_backend(tmp_path, patience_s=0.2))
    with Load(engine, store) as load:
        load.wait_for(hits=SOME)
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "catalog.sqlite3")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"locked\n"
            lose_and_find_room(load, lambda: None, holder.kill)


# PostgreSQL


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def fleet(engine: Engine, postgres: PostgresServer, tmp_path: Path) -> Iterator[Load]:
    place = PostgresPlace(tmp_path / "store", postgres)
    with Load(engine, open_store(place.url)) as load:
        load.wait_for(hits=SOME)
        yield load


def test_postgres_stopped_and_started(fleet: Load, postgres: PostgresServer) -> None:
    costs_each_thread_one_deadline(fleet, postgres.stop)
    postgres.start()
    fleet.wait_for(hits=SOME)


def test_postgres_paused(fleet: Load, postgres: PostgresServer) -> None:
    costs_each_thread_one_deadline(fleet, postgres.pause)
    postgres.resume()
    fleet.wait_for(hits=SOME)


# Anything


def test_faults_at_random(engine: Engine, tmp_path: Path) -> None:
    """Failures, delays, lost answers and damaged blobs, all at once."""
    faulty = Faulty(open_file_backend(tmp_path))
    with Load(engine, StateStore(Guarded(faulty, pauses=SOON))) as load:
        load.wait_for(hits=SOME)
        faulty.faults = (
            Fault(
                ("longest", "read", "touch", "usage"), Fail(UnavailableError("")), Chance(0.02, 1)
            ),
            Fault(("publish", "update"), Fail(FullError("")), Chance(0.1, 2)),
            Fault(("publish", "touch"), Lose(UnavailableError("")), Chance(0.05, 3)),
            Fault(("longest", "read"), Delay(0.3), Chance(0.02, 4)),
            Fault(("read",), FlipBit(9_999), Chance(0.1, 5)),
            Fault(("read",), Truncate(1000), Chance(0.1, 6)),
        )
        load.wait_until(lambda: faulty.struck["read"] > 20 and faulty.struck["publish"] > 5)
        faulty.faults = ()
        load.wait_for(hits=SOME)
