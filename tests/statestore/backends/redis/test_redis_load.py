"""Every fault of a server in the middle of requests: none raises, hangs or finds a wrong state, and
the store is used again by itself when the fault is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from statestore.entry import Role
from statestore.store import PutOutcome, StateStore
from tests.places.backend_places import a_key, digest
from tests.places.redis_places import open_url
from tests.places.redis_servers import (
    RedisServer,
    free_port,
    running,
    sentinel_of,
    wait_until,
)
from tests.places.small_disks import fill, mounted_tmpfs
from tests.statestore.workers.redis_load import ALL, IDENTITY, Load, state_of, under_load

OPTIONS = "?timeout_s=0.5&connect_timeout_s=0.5"


@contextmanager
def loaded(url: str) -> Iterator[Load]:
    with StateStore(open_url(url + OPTIONS), codec_name="raw") as store, under_load(store) as load:
        yield load


def errors(load: Load) -> float:
    """Lookups that met a failure, so far."""
    return load.store.metrics.errors.labels(operation="find")._value.get()


def fails(load: Load) -> None:
    """Wait until lookups and puts have met the fault."""
    before = errors(load)
    load.until(3, "dropped", "miss")
    assert errors(load) > before


def works(load: Load) -> None:
    """Wait until states are put and found again."""
    load.until(20, "hit")
    load.until(5, "published")


def test_stopped_and_started_empty() -> None:
    with running() as server, loaded(server.url) as load:
        for _ in range(2):
            server.stop()
            fails(load)
            server.start()
            works(load)


def test_paused() -> None:
    with running() as server, loaded(server.url) as load:
        for _ in range(2):
            server.pause()
            fails(load)
            server.go_on()
            works(load)


def test_restarted_with_what_it_appended() -> None:
    with running("--appendonly", "yes") as server, loaded(server.url) as load:
        kept = a_key(ALL)  # nobody puts it a second time
        put = {"token_digest": digest("tokens"), "role": Role.SEGMENT}
        assert load.store.put(IDENTITY, kept, state_of(ALL), **put) is PutOutcome.PUBLISHED
        server.stop()
        fails(load)
        server.start()
        works(load)
        found = load.store.get(IDENTITY, kept)
        assert found is not None
        assert found.state.tensors[0].data == state_of(ALL).tensors[0].data


def test_flushed() -> None:
    with running() as server, loaded(server.url) as load:
        for _ in range(5):
            server.client().flushall()
            works(load)


def test_out_of_memory_without_eviction() -> None:
    with running("--maxmemory-policy", "noeviction") as server, loaded(server.url) as load:
        server.client().config_set("maxmemory", 1)
        load.until(20, "dropped")
        load.until(50, "hit")  # what is stored is found, and counted, all the same
        before = errors(load)
        load.until(20, "hit", "dropped")
        assert errors(load) == before
        server.client().config_set("maxmemory", 0)
        server.client().flushall()  # by now everything may be stored
        works(load)


def test_a_full_disk(tmp_path: Path) -> None:
    """A server that cannot append to its log refuses writes and answers reads."""
    disk = tmp_path / "disk"
    with (
        mounted_tmpfs(disk, "64m"),
        running("--appendonly", "yes", "--dir", str(disk)) as server,
        loaded(server.url) as load,
    ):
        fill(disk / "filler")
        load.until(20, "dropped")
        load.until(50, "hit")
        (disk / "filler").unlink()
        wait_until(lambda: server.client().flushall(), "the server to write again")
        works(load)


def test_out_of_memory_with_the_servers_eviction() -> None:
    options = ("--maxmemory", "6mb", "--maxmemory-policy", "allkeys-lru")
    with running(*options) as server, loaded(server.url) as load:
        client = server.client()
        wait_until(lambda: int(client.info("stats")["evicted_keys"]) > 200, "evictions")
        works(load)
        client.config_set("maxmemory", 0)
        load.store.sweep(0.0)
        works(load)


def test_loading() -> None:
    slow = ("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
    with running() as server, loaded(server.url) as load:
        server.client().save()
        server.stop()
        server.options = slow
        server.start()
        wait_until(lambda: server.client().info("persistence")["loading"] == 1, "loading")
        fails(load)
        server.client().config_set("key-load-delay", 0)
        works(load)


def test_a_primary_that_becomes_a_replica() -> None:
    with running() as server, loaded(server.url) as load:
        server.client().replicaof("127.0.0.1", free_port())
        load.until(20, "dropped")
        load.until(20, "hit")  # a replica answers; that it cannot count the hit is no failure
        server.client().replicaof("NO", "ONE")
        server.client().flushall()
        works(load)


@pytest.mark.parametrize("fault", ["killed", "paused"])
def test_a_failover_through_sentinel(fault: str) -> None:
    fast = ("--repl-diskless-sync-delay", "0")
    with running(*fast) as primary, running(*fast) as replica, sentinel_of(primary) as port:
        replica.client().replicaof("127.0.0.1", str(primary.port))
        wait_until(lambda: replica.client().info()["master_link_status"] == "up", "the replica")
        sentinel = RedisServer(primary.directory, port=port)
        wait_until(lambda: sentinel.client().execute_command("SENTINEL REPLICAS fleet"), "Sentinel")
        with loaded(f"redis+sentinel://127.0.0.1:{port}/fleet") as load:
            if fault == "killed":
                primary.stop()
            else:
                primary.pause()
            fails(load)
            wait_until(lambda: replica.client().role()[0] == b"master", "the failover")
            works(load)
