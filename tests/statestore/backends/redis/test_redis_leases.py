"""Leases on Redis beyond the contract: one connection for all who wait, and what becomes of them
when it breaks, the server fails over, is full, or forbids channels; after a fork; behind Sentinel.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest

from statestore.backends.base import Backend
from statestore.backends.leases import Lease, Leases, Outcome
from statestore.backends.redis import leases as redis_leases
from statestore.errors import UnavailableError
from statestore.keys import StateKey
from tests.places.backend_places import a_key, an_entry, publish
from tests.places.redis_places import open_url
from tests.places.redis_servers import (
    RedisServer,
    running,
    running_cluster,
    sentinel_of,
    wait_until,
)
from tests.statestore.contracts.test_lease_contract import LONG_S, leases_of
from tests.statestore.workers.forked import fork, succeeded

A, B = "a", "b"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def backend(server: RedisServer) -> Iterator[Backend]:
    with closing(open_url(server.url)) as backend:
        yield backend


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(12) as threads:
        yield threads


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by himself: who wakes up was told."""
    monkeypatch.setattr(redis_leases, "_LOOK_AGAIN_S", (10 * LONG_S, 10 * LONG_S))


def listening(server: RedisServer, prefix: str = "statestore") -> int:
    with server.client() as client:
        return int(client.pubsub_numsub(f"{prefix}:1:released")[0][1])


def waiting(leases: Leases, number: int, threads: ThreadPoolExecutor) -> Future[Lease | None]:
    return threads.submit(leases.wait, a_key(number), LONG_S)


def outcome_of(wait: Future[Lease | None]) -> Outcome | None:
    lease = wait.result(LONG_S)
    assert lease is not None
    return lease.outcome


@pytest.mark.usefixtures("no_looks")
def test_one_connection_serves_all_who_wait(
    server: RedisServer, backend: Backend, threads: ThreadPoolExecutor
) -> None:
    leases = leases_of(backend)
    for number in range(4):
        leases.acquire(a_key(number), A, 4 * LONG_S)
    assert listening(server) == 0
    waits = [waiting(leases, number % 4, threads) for number in range(12)]
    wait_until(lambda: len(redis_ears(leases)) == 12, "all to wait")
    wait_until(lambda: listening(server) == 1, "the connection")
    for number in (2, 0, 3):
        leases.release(a_key(number), A, Outcome.PUBLISHED)
        for wait in waits[number::4]:
            assert outcome_of(wait) is Outcome.PUBLISHED
        assert listening(server) == 1
    assert not any(wait.done() for wait in waits[1::4])
    leases.release(a_key(1), A, Outcome.NOT_STORED)
    assert {outcome_of(wait) for wait in waits[1::4]} == {Outcome.NOT_STORED}
    wait_until(lambda: listening(server) == 0, "the connection to be closed")


def redis_ears(leases: Leases) -> list[object]:
    return [ear for ears in list(leases._bell._ears.values()) for ear in ears]  # type: ignore[attr-defined]


def test_nobody_asks_while_he_listens(
    server: RedisServer, backend: Backend, threads: ThreadPoolExecutor
) -> None:
    leases = leases_of(backend)
    leases.acquire(a_key(0), A, LONG_S)
    waits = [waiting(leases, 0, threads) for _ in range(8)]
    wait_until(lambda: len(redis_ears(leases)) == 8, "all to wait")
    client = server.client()
    client.config_resetstat()
    other = threading.Event()
    other.wait(2.0)
    asked = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    assert asked <= 8 * 4  # two looks before, and one or two in 2 s
    leases.release(a_key(0), A, Outcome.PUBLISHED)
    assert {outcome_of(wait) for wait in waits} == {Outcome.PUBLISHED}


@pytest.mark.usefixtures("no_looks")
def test_a_connection_that_breaks_is_made_anew(
    server: RedisServer, backend: Backend, threads: ThreadPoolExecutor
) -> None:
    leases = leases_of(backend)
    leases.acquire(a_key(0), A, 4 * LONG_S)
    waits = [waiting(leases, 0, threads) for _ in range(4)]
    wait_until(lambda: listening(server) == 1, "the connection")
    with server.client() as client:
        for _ in range(3):
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            wait_until(lambda: listening(server) == 1, "another connection")
    assert not any(wait.done() for wait in waits)
    leases.release(a_key(0), A, Outcome.PUBLISHED)
    assert {outcome_of(wait) for wait in waits} == {Outcome.PUBLISHED}


def test_without_the_right_to_listen_they_ask(
    server: RedisServer, threads: ThreadPoolExecutor
) -> None:
    with server.client() as client:
        client.execute_command(
            *("ACL", "SETUSER", "deaf", "on", ">secret", "~*", "+@all", "resetchannels")
        )
    url = server.url.replace("://", "://deaf:secret@")
    with closing(open_url(url)) as backend:
        leases = leases_of(backend)
        leases.acquire(a_key(0), A, LONG_S)
        waits = [waiting(leases, 0, threads) for _ in range(4)]
        wait_until(lambda: len(redis_ears(leases)) == 4, "all to wait")
        leases.release(a_key(0), A, Outcome.PUBLISHED)
        assert {outcome_of(wait) for wait in waits} == {Outcome.PUBLISHED}
        assert listening(server) == 0


def test_a_server_that_dies_ends_a_wait(
    server: RedisServer, backend: Backend, threads: ThreadPoolExecutor
) -> None:
    leases = leases_of(backend)
    leases.acquire(a_key(0), A, LONG_S)
    waits = [waiting(leases, 0, threads) for _ in range(4)]
    wait_until(lambda: listening(server) == 1, "the connection")
    server.stop()
    for wait in waits:
        with pytest.raises(UnavailableError):
            wait.result(LONG_S)
    server.start()
    assert leases.acquire(a_key(0), B, LONG_S).owner == B  # on new connections, and empty


def test_a_server_that_hangs_is_waited_for_once(
    server: RedisServer, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look, as after a failover, would hang as long."""
    monkeypatch.setattr(redis_leases, "_LOOK_AGAIN_S", (0.01, 0.01))
    with closing(open_url(f"{server.url}?timeout_s=0.5&connect_timeout_s=0.5")) as backend:
        leases = leases_of(backend)
        leases.acquire(a_key(0), A, LONG_S)
        looks: list[bool] = []
        look = leases._look  # type: ignore[attr-defined]

        def looking(key: StateKey) -> Lease | None:
            looks.append(False)
            lease: Lease | None = look(key)
            looks[-1] = True
            return lease

        monkeypatch.setattr(leases, "_look", looking)
        wait = waiting(leases, 0, threads)
        wait_until(lambda: len(looks) > 3, "it to wait")
        server.pause()
        with pytest.raises(UnavailableError, match="Timeout"):
            wait.result(LONG_S)
        assert looks.count(False) == 1
        server.go_on()


def test_a_server_that_is_flushed_ends_a_wait(
    server: RedisServer, backend: Backend, threads: ThreadPoolExecutor
) -> None:
    leases = leases_of(backend)
    leases.acquire(a_key(0), A, LONG_S)
    wait = waiting(leases, 0, threads)
    wait_until(lambda: listening(server) == 1, "the connection")
    server.client().flushall()
    assert wait.result(LONG_S) is None
    assert not leases.renew(a_key(0), A, LONG_S)
    leases.release(a_key(0), A, Outcome.PUBLISHED)
    assert leases.wait(a_key(0), 0.0) is None


def test_a_full_server_gives_no_lease_and_takes_one_back(
    server: RedisServer, backend: Backend
) -> None:
    leases = leases_of(backend)
    leases.acquire(a_key(0), A, LONG_S)
    server.client().config_set("maxmemory", 1)
    with pytest.raises(UnavailableError, match="no memory left"):
        leases.acquire(a_key(1), A, LONG_S)
    assert leases.renew(a_key(0), A, LONG_S)
    leases.release(a_key(0), A, Outcome.NOT_STORED)
    seen = leases.wait(a_key(0), 0.0)
    assert seen is not None
    assert seen.outcome is Outcome.NOT_STORED


def test_the_server_keeps_the_time(server: RedisServer, backend: Backend) -> None:
    """What is stored says nothing of a clock: it expires."""
    leases, client = leases_of(backend), server.client()
    leases.acquire(a_key(0), "host 1", 12.0)
    (key,) = client.keys("statestore:1:*:lease:*")
    assert client.get(key) == b"h host 1"
    assert 0 < client.pttl(key) <= 12_000
    leases.renew(a_key(0), "host 1", 340.0)
    assert 12_000 < client.pttl(key) <= 340_000
    leases.release(a_key(0), "host 1", Outcome.NOT_STORED)
    assert client.get(key) == b"n host 1"
    assert 0 < client.pttl(key) <= 10_000


@pytest.mark.usefixtures("no_looks")
def test_a_fork_while_others_wait(
    server: RedisServer, backend: Backend, threads: ThreadPoolExecutor
) -> None:
    """The child takes nothing of its parent's connection, and has one of its own."""
    leases = leases_of(backend)
    for number in (0, 1):
        leases.acquire(a_key(number), A, 4 * LONG_S)
    waits = [waiting(leases, number % 2, threads) for number in range(4)]
    wait_until(lambda: listening(server) == 1, "the parent's connection")
    ready, told = os.pipe(), os.pipe()

    def work(number: int) -> None:
        os.write(ready[1], b"!")
        seen = leases.wait(a_key(number), LONG_S)
        assert seen is not None
        assert seen.outcome is Outcome.PUBLISHED
        publish(backend, an_entry(number))
        os.write(told[1], b"!")

    children = [fork(partial(work, number)) for number in (0, 1)]
    for _ in children:
        os.read(ready[0], 1)
    wait_until(lambda: listening(server) == 3, "the children's connections")
    leases.release(a_key(0), A, Outcome.PUBLISHED)
    os.read(told[0], 1)
    assert [outcome_of(wait) for wait in waits[0::2]] == [Outcome.PUBLISHED] * 2
    leases.release(a_key(1), A, Outcome.PUBLISHED)
    assert [outcome_of(wait) for wait in waits[1::2]] == [Outcome.PUBLISHED] * 2
    assert succeeded(children)
    assert backend.usage().entries == 2
    for end in (*ready, *told):
        os.close(end)


def test_a_failover_behind_sentinel(threads: ThreadPoolExecutor) -> None:
    fast = ("--repl-diskless-sync-delay", "0")
    with running(*fast) as primary, running(*fast) as replica, sentinel_of(primary) as port:
        replica.client().replicaof("127.0.0.1", str(primary.port))
        wait_until(lambda: replica.client().info()["master_link_status"] == "up", "the replica")
        from_sentinel = RedisServer(primary.directory, port=port).client()
        wait_until(
            lambda: from_sentinel.execute_command("SENTINEL REPLICAS fleet"), "the replica's name"
        )
        with closing(open_url(f"redis+sentinel://127.0.0.1:{port}/fleet?timeout_s=2")) as backend:
            leases = leases_of(backend)
            leases.acquire(a_key(0), A, LONG_S)
            primary.client().wait(1, 5000)
            wait = waiting(leases, 0, threads)
            wait_until(lambda: listening(primary) == 1, "the connection to the primary")
            fail_over = ("SENTINEL", "FAILOVER", "fleet")
            wait_until(lambda: from_sentinel.execute_command(*fail_over), "a good replica")
            wait_until(lambda: replica.client().role()[0] == b"master", "the failover")
            wait_until(lambda: ended(wait) or listening(replica) == 1, "the new primary")
            wait_until(lambda: tried(leases, B), "the new primary to answer")
            if ended(wait):  # it met the moment without a primary: the caller computes
                with pytest.raises(UnavailableError):
                    wait.result()
                wait = waiting(leases, 0, threads)
            wait_until(lambda: listening(replica) == 1, "the connection to the new primary")
            leases.release(a_key(0), A, Outcome.PUBLISHED)
            assert outcome_of(wait) is Outcome.PUBLISHED


def ended(wait: Future[Lease | None]) -> bool:
    return wait.done()


def tried(leases: Leases, owner: str) -> bool:
    try:
        return leases.acquire(a_key(0), owner, LONG_S).owner == A
    except UnavailableError:
        return False


def test_a_node_of_a_cluster_that_dies_ends_no_other_nodes_waits(
    threads: ThreadPoolExecutor,
) -> None:
    """Whoever listened at that node goes on at another."""
    with running_cluster("--cluster-require-full-coverage", "no") as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}?timeout_s=1"
        with closing(open_url(url)) as backend, closing(open_url(url)) as other:
            leases = leases_of(backend)
            keys = [number for number in range(40) if held_by(nodes[0], number)][:4]
            for number in keys:
                leases.acquire(a_key(number), A, LONG_S)
            waits = [waiting(leases, number, threads) for number in keys]
            wait_until(lambda: sum(map(listening, nodes)) == 1, "the connection")
            nodes[2].stop()
            for number in keys:
                leases_of(other).release(a_key(number), A, Outcome.PUBLISHED)
            assert {outcome_of(wait) for wait in waits} == {Outcome.PUBLISHED}


def held_by(node: RedisServer, number: int) -> bool:
    with node.client() as client:
        tag = f"statestore:1:{{{a_key(number).digest[0] % 128:02x}}}:"
        slot = int(client.execute_command("CLUSTER", "KEYSLOT", tag))
        mine = client.execute_command("CLUSTER NODES")[f"127.0.0.1:{node.port}"]["slots"]
        return any(int(first) <= slot <= int(last) for first, last in mine)


@pytest.mark.parametrize(
    "left", [b"", b"h", b"n", b"xyz", b"h \xff", b"q somebody", b"h somebody"], ids=repr
)
def test_what_a_hand_left_in_place_of_a_lease_is_nobodys(
    server: RedisServer, backend: Backend, left: bytes
) -> None:
    """The last one would be, but that it never expires."""
    leases = leases_of(backend)
    leases.acquire(a_key(0), A, LONG_S)
    with server.client() as client:
        (name,) = client.keys("*:lease:*")
        client.set(name, left)
    assert leases.wait(a_key(0), LONG_S) is None
    assert leases.acquire(a_key(0), B, LONG_S).owner == B
    assert leases.renew(a_key(0), B, LONG_S)
