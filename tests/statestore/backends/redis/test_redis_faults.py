"""Redis servers that are down, slow, full, flushed, restarted, locked or demoted: real ones."""

from __future__ import annotations

import random
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from statestore import open_store
from statestore.backends.base import Backend
from statestore.backends.leases import Outcome
from statestore.backends.redis import parts
from statestore.backends.sightings import sightings_of
from statestore.entry import Change, EntryFilter, Status, Usage
from statestore.errors import BackendError, FullError, UnavailableError
from statestore.keys import marks
from tests.places.backend_places import (
    CREATED_AT,
    a_blob,
    a_key,
    an_entry,
    digest,
    publish,
)
from tests.places.redis_places import RedisPlace, open_url
from tests.places.redis_servers import (
    RedisServer,
    free_port,
    running,
    sentinel_of,
    wait_until,
)
from tests.places.states import OURS, put
from tests.statestore.backends.redis.test_redis_concurrency import check_store
from tests.statestore.contracts.test_lease_contract import leases_of
from tests.statestore.workers.backend_worker import step

NOW = CREATED_AT + 10_000
FAST = "?timeout_s=0.3&connect_timeout_s=0.3"

CALLS: dict[str, Callable[[Backend], Any]] = {
    "longest": lambda backend: backend.longest([a_key(0)], NOW),
    "read": lambda backend: backend.read(an_entry(0)),
    "publish": lambda backend: publish(backend, an_entry(0)),
    "touch": lambda backend: backend.touch(an_entry(0), NOW, 0.0),
    "update": lambda backend: backend.update(a_key(0), Change(pinned=True)),
    "delete": lambda backend: backend.delete(a_key(0), "deleted"),
    "entries": lambda backend: list(backend.entries(EntryFilter())),
    "departed": lambda backend: backend.departed([a_key(0)]),
    "usage": lambda backend: backend.usage(),
    "evict": lambda backend: backend.evict(0, NOW),
    "acquire": lambda backend: leases_of(backend).acquire(a_key(0), "a", 60.0),
    "renew": lambda backend: leases_of(backend).renew(a_key(0), "a", 60.0),
    "release": lambda backend: leases_of(backend).release(a_key(0), "a", Outcome.PUBLISHED),
    "wait": lambda backend: leases_of(backend).wait(a_key(0), 60.0),
    "sweep": lambda backend: backend.sweep(NOW, 0.0),
}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def a_server() -> Iterator[RedisServer]:
    """For tests that do it no harm."""
    with running() as server:
        yield server


@pytest.fixture
def backend(server: RedisServer) -> Iterator[Backend]:
    backend = open_url(server.url + FAST)
    yield backend
    backend.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
def test_a_server_that_is_down(call: str, scheme: str) -> None:
    path = "/primary" if scheme == "redis+sentinel" else ""
    backend = open_url(f"{scheme}://127.0.0.1:{free_port()}{path}{FAST}")  # opening asks nothing
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        CALLS[call](backend)
    backend.close()


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_stops_answering(server: RedisServer, call: str) -> None:
    backend = open_url(server.url + FAST)
    publish(backend, an_entry(0))
    server.pause()
    with pytest.raises(UnavailableError, match="Timeout"):
        CALLS[call](backend)
    server.go_on()
    assert backend.usage().entries <= 1  # the call may have happened after all
    backend.close()


def test_a_peer_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        backend = open_url(f"redis://127.0.0.1:{silent.getsockname()[1]}{FAST}")
        with pytest.raises(UnavailableError, match="Timeout"):
            backend.usage()
        backend.close()


def test_a_restarted_server_is_empty_and_used_again(server: RedisServer, backend: Backend) -> None:
    publish(backend, an_entry(0))
    server.stop()
    server.start()
    assert backend.longest([a_key(0)], NOW) is None  # on the connection that was open
    assert publish(backend, an_entry(0))
    assert backend.usage().entries == 1


def test_a_flush_is_a_miss(server: RedisServer, backend: Backend) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    server.client().flushall()
    assert backend.longest([entry.key], NOW) is None
    assert backend.read(entry) is None
    assert backend.usage() == Usage(0, 0, 0, 0, 0)
    assert publish(backend, entry)
    assert backend.read(entry) == a_blob(entry.key)


def test_parts_that_go_while_they_are_written(
    server: RedisServer, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flushed between the last part and the publication: the put fails, nothing is left."""
    write = parts.write

    def write_and_lose(*arguments: Any) -> None:
        write(*arguments)
        server.client().flushall()

    monkeypatch.setattr(parts, "write", write_and_lose)
    with pytest.raises(UnavailableError, match="had gone before it was whole"):
        publish(backend, an_entry(0, blob_bytes=3_000_000))
    assert server.client().keys() == []


@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_part_that_the_server_evicted_makes_a_miss(
    server: RedisServer, backend: Backend, index: int
) -> None:
    entry = an_entry(0, blob_bytes=3_000_000)
    publish(backend, entry)
    place = RedisPlace(server.url, [server], "statestore")
    (name,) = place.parts()
    server.client().delete(place.parts()[name][index])
    assert backend.read(entry) is None
    assert backend.update(entry.key, Change(status=Status.QUARANTINED), blob=entry.blob)
    again = an_entry(0, blob_bytes=3_000_000)
    assert publish(backend, again)
    assert backend.read(again) == a_blob(again.key, 3_000_000)
    assert place.blob_names() == {again.blob}


def test_a_full_server_refuses_puts_and_allows_the_rest() -> None:
    with running("--maxmemory", "8mb", "--maxmemory-policy", "noeviction") as server:
        backend = open_url(server.url)
        small, large = an_entry(0), an_entry(1, blob_bytes=20_000_000)
        publish(backend, small)
        with pytest.raises(FullError, match="raise maxmemory"):
            publish(backend, large)
        place = RedisPlace(server.url, [server], "statestore")
        assert place.blob_names() == {small.blob}  # not kept until it expires
        assert backend.longest([large.key, small.key], NOW) == small
        server.client().config_set("maxmemory", 1)
        with pytest.raises(FullError):
            publish(backend, an_entry(2))
        assert backend.read(small) == a_blob(small.key)
        backend.touch(small, NOW, 1.0)
        assert backend.update(small.key, Change(status=Status.QUARANTINED, reason="bad"))
        assert backend.delete(small.key, "deleted")
        assert backend.departed([small.key])[small.key].reason == "deleted"
        assert backend.usage() == Usage(0, 0, 0, 0, 0)
        backend.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-lru"])
def test_a_server_that_evicts_by_itself_never_shows_half_a_state(policy: str) -> None:
    with running("--maxmemory", "16mb", "--maxmemory-policy", policy) as server:
        backend = open_url(server.url)
        for number in range(24):  # what fits comes to 10
            entry = an_entry(number, blob_bytes=1_500_000)
            try:
                publish(backend, entry)
            except BackendError:  # its own parts were evicted, or nothing could be
                continue
            for seen in range(number + 1):
                found = backend.longest([a_key(seen)], NOW)
                blob = backend.read(found) if found is not None else None
                assert blob is None or blob == a_blob(a_key(seen), 1_500_000)
        server.client().config_set("maxmemory", 0)
        backend.sweep(NOW, 0.0)
        check_mended(backend, RedisPlace(server.url, [server], "statestore"))
        backend.close()


@pytest.mark.parametrize(
    "lost", ["entry:*", "used", "order", "barred", "ranks", "expiry", "tokens", "totals", "anchors"]
)
def test_a_sweep_mends_what_eviction_put_out_of_step(
    server: RedisServer, backend: Backend, lost: str
) -> None:
    for number in range(6):
        publish(backend, an_entry(number, expires_at=NOW + 1, pinned=number == 5))
    backend.update(a_key(4), Change(status=Status.QUARANTINED))
    place = RedisPlace(server.url, [server], "statestore")
    server.client().delete(min(place.keys("{*}:" + lost)))
    swept = backend.sweep(NOW, grace_s=1e9)
    assert swept.blobs == (1 if lost == "entry:*" else 0)
    check_mended(backend, place)
    assert len(place.rows()) == (5 if lost == "entry:*" else 6)
    left = len(place.rows())
    assert backend.sweep(NOW + 1, grace_s=1e9).expired == left
    assert backend.usage() == Usage(0, 0, 0, 0, 0)
    assert place.blob_names() == set()


DAMAGE: dict[str, bytes | None] = {
    "role": None,
    "status": b"unheard of",
    "labels": b"\xc1",
    "n_tokens": b"many",
    "namespace": b"\xff",
    "blob_bytes": b"-5",
    "expires_at": b"never",
    "digest": b"short",
    "score": b"low",
}


@pytest.mark.parametrize("field", DAMAGE)
def test_a_damaged_entry_is_stepped_over_and_named(
    a_server: RedisServer, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"damaged-{field}".replace("_", "-")
    backend = open_url(f"{a_server.url}?prefix={name}")
    for number in range(2):
        publish(backend, an_entry(number))
    (key,) = RedisPlace(a_server.url, [a_server], name).keys(f"{{*}}:entry:{a_key(0).hex}")
    value = DAMAGE[field]
    with a_server.client() as client:
        client.hset(key, field, value) if value else client.hdel(key, field)
    found = backend.longest([a_key(0), a_key(1)], NOW)
    assert found is not None
    assert found.key == a_key(1)
    assert [entry.key for entry in backend.entries(EntryFilter())] == [a_key(1)]
    assert "is damaged and passed over" in caplog.text
    again = an_entry(0)
    assert publish(backend, again)  # what is damaged is in no put's way
    assert backend.longest([a_key(0)], NOW) == again
    backend.close()


@pytest.mark.parametrize("field", [*DAMAGE, "blob", "parts", "pinned"])
def test_a_damaged_entry_is_in_no_evictions_way(a_server: RedisServer, field: str) -> None:
    name = f"evicted-{field}".replace("_", "-")
    backend = open_url(f"{a_server.url}?prefix={name}")
    place = RedisPlace(a_server.url, [a_server], name)
    for number in range(3):
        publish(backend, an_entry(number, score=float(number)))
    (key,) = place.keys(f"{{*}}:entry:{a_key(0).hex}")
    with a_server.client() as client:
        client.hset(key, field, DAMAGE.get(field) or b"?")
    backend.evict(0, NOW)
    assert backend.longest([a_key(1), a_key(2)], NOW) is None
    assert publish(backend, an_entry(0))
    backend.sweep(NOW, 0.0)
    assert backend.usage() == Usage(1, 1000, 2000, 0, 0, age=2.0)
    assert [entry.key for entry in backend.entries(EntryFilter())] == [a_key(0)]
    backend.close()


@pytest.mark.parametrize("size", [10**9, 10**12, 10**18])
def test_a_size_beyond_all_limits_is_not_believed(a_server: RedisServer, size: int) -> None:
    """Neither memory of that size nor a deadline for it is asked for."""
    with open_store(f"{a_server.url}?prefix=huge-{size}&find_ms=20000") as store:
        put(store, 0)
        put(store, 1)
        (key,) = RedisPlace(a_server.url, [a_server], f"huge-{size}").keys(
            f"{{*}}:entry:{a_key(0).hex}"
        )
        with a_server.client() as client:
            client.hset(key, "blob_bytes", size)
        found = store.find(OURS, [a_key(0), a_key(1)])
        assert found is not None
        assert found.entry.key == a_key(1)
        assert store.usage().quarantined == 1


def check_mended(backend: Backend, place: RedisPlace) -> None:
    rows = place.rows()
    assert {entry.blob for entry in backend.entries(EntryFilter())} == {r["blob"] for r in rows}
    assert place.blob_names() <= {row["blob"] for row in rows}
    usage = backend.usage()
    assert (usage.entries, usage.blob_bytes) == (len(rows), sum(r["blob_bytes"] for r in rows))
    assert usage.pinned == sum(row["pinned"] for row in rows)
    sizes = {order: place.at("", lambda node: node.zcard(f"statestore:1:{{00}}:{order}"))  # noqa: B023
             for order in ("used", "order", "barred", "ranks", "tokens")}  # fmt: skip
    assert sizes["used"] == sizes["tokens"] == len(rows)
    assert sizes["order"] + sizes["barred"] == sizes["ranks"] == len(rows) - usage.pinned
    beside = place.at("", lambda node: node.hgetall("statestore:1:{00}:anchors"))
    assert int(beside.get(b"", 0)) == int(beside.get(b"?", 0)) == len(rows)
    namespaces = {row["namespace"] for row in rows}
    assert sum(backend.usage(name).blob_bytes for name in namespaces) == usage.blob_bytes


def test_a_replica_says_that_it_only_reads(server: RedisServer, backend: Backend) -> None:
    entry = an_entry(0)
    publish(backend, entry)
    server.client().replicaof("127.0.0.1", free_port())
    with pytest.raises(UnavailableError, match="this is a replica"):
        publish(backend, an_entry(1))
    with pytest.raises(UnavailableError, match="this is a replica"):
        backend.touch(entry, NOW, 0.0)
    assert backend.longest([entry.key], NOW) == entry
    server.client().replicaof("NO", "ONE")
    assert publish(backend, an_entry(1))


def test_a_server_that_is_still_loading(server: RedisServer, backend: Backend) -> None:
    for number in range(200):
        publish(backend, an_entry(number))
    server.client().save()
    server.stop()
    server.options = (
        "--key-load-delay",
        "20000",
        "--loading-process-events-interval-bytes",
        "1024",
    )
    server.start()
    with pytest.raises(UnavailableError, match="starting"):
        backend.usage()
    server.client().config_set("key-load-delay", 0)
    wait_until(lambda: server.client().dbsize() > 0, "the server to have loaded")
    assert backend.usage().entries == 200


def test_passwords(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with running("--requirepass", "s3cret") as server:
        right = open_url(f"redis://:s3cret@127.0.0.1:{server.port}")
        assert publish(right, an_entry(0))
        assert "s3cret" not in right.url
        for url in (f"redis://:wr0ng@127.0.0.1:{server.port}", server.url):
            backend = open_url(url)
            with pytest.raises(UnavailableError) as caught:
                backend.usage()
            assert "wr0ng" not in str(caught.value)
            assert "check the user and the password" in str(caught.value)
            with pytest.raises(UnavailableError, match="check the user and the password"):
                list(
                    backend.entries(EntryFilter())
                )  # a script, too long for one who has not logged in
            backend.close()
        right.close()
    assert "s3cret" not in caplog.text + "".join(capfd.readouterr())


def test_passwords_of_sentinel_and_of_the_server() -> None:
    with running("--requirepass", "one") as server:
        knows = ("sentinel auth-pass fleet one", "requirepass two")
        with sentinel_of(server, *knows) as port:
            sentinel = RedisServer(server.directory, port=port)
            wait_until(lambda: sentinel.client(password="two").ping(), "Sentinel")
            place = f"127.0.0.1:{port}/fleet?timeout_s=30&connect_timeout_s=30"
            right = open_url(f"redis+sentinel://:one@{place}&sentinel_password=two")
            assert publish(right, an_entry(0))
            right.close()
            for url, words in (
                (f"redis+sentinel://:one@{place}&sentinel_password=0ne", "sentinel_password="),
                (f"redis+sentinel://:0ne@{place}&sentinel_password=two", "check the user"),
            ):
                wrong = open_url(url)
                with pytest.raises(UnavailableError, match=words):
                    wrong.usage()
                wrong.close()


def test_a_socket_file(server: RedisServer) -> None:
    backend = open_url(f"unix://{server.socket_path}?db=3")
    entry = an_entry(0)
    publish(backend, entry)
    assert backend.read(entry) == a_blob(entry.key)
    assert server.client(db=3).dbsize() > 0
    backend.close()


def test_a_user_with_the_rights_that_are_named_and_one_without() -> None:
    rights = "~states:* &states:* +@read +@write +@scripting +@pubsub +@connection +cluster"
    with running() as server:
        client = server.client()
        client.execute_command("ACL SETUSER", "bob", "on", ">p@ss/word", *rights.split())
        client.execute_command("ACL SETUSER", "eve", "on", ">p@ss/word", "~states:*", "+@read")
        rest = f"p%40ss%2Fword@127.0.0.1:{server.port}?prefix=states&timeout_s=30"
        with closing(open_url(f"redis://bob:{rest}")) as bob:
            for call in CALLS.values():
                call(bob)
            sightings = sightings_of(bob)
            assert sightings is not None
            seen = marks([digest("a chunk's end")])
            sightings.note(seen)
            assert sightings.seen(seen) == 1
        with closing(open_url(f"redis://eve:{rest}")) as eve:
            for name in ("longest", "publish", "acquire"):
                with pytest.raises(UnavailableError, match=re.escape(f"needs {rights}")):
                    CALLS[name](eve)


@pytest.mark.parametrize("command", ["zadd", "hset", "hincrby", "unlink", "hmget", "evalsha"])
def test_a_right_that_is_taken_away_in_mid_life(command: str) -> None:
    """Scripts end half-way then: what they leave is mended, and no call fails otherwise."""
    rights = "~* &* +@read +@write +@scripting +@pubsub +@connection +cluster"
    with running() as server:
        client = server.client()
        client.execute_command("ACL SETUSER", "bob", "on", ">pass", *rights.split())
        place = RedisPlace(server.url, [server], "p")
        rest = f"bob:pass@127.0.0.1:{server.port}?prefix=p&timeout_s=30&connect_timeout_s=10"
        dice, refused, failed = random.Random(1), 0, 0
        with closing(open_url(f"redis://{rest}")) as bob:
            for number in range(120):
                if number in (40, 80):
                    change = "-" if number == 40 else "+"
                    client.execute_command("ACL SETUSER", "bob", f"{change}{command}")
                try:
                    step(bob, dice)
                except UnavailableError as error:
                    failed += 1
                    refused += "this user needs ~p:* &p:* +@read" in str(error)
            bob.sweep(NOW, 0.0)
        check_store(place)
    assert 0 < refused == failed
