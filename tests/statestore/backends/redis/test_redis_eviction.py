"""Eviction on Redis beyond the contract: what is chosen over shards, what evictors that meet take,
a server that evicted before, is full, or holds the entries of an earlier release."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore.backends.base import Backend
from statestore.backends.redis import evicting
from statestore.backends.redis.choosing import Shard, Victim, plan
from statestore.entry import Change, EntryFilter, Evicted, Status, Usage
from statestore.errors import FullError, InputError
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import RedisServer, running, running_cluster

NOW = CREATED_AT + 10_000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def place(server: RedisServer, request: pytest.FixtureRequest) -> RedisPlace:
    return RedisPlace(server.url, [server], request.node.originalname or request.node.name)


@pytest.fixture
def backend(place: RedisPlace) -> Iterator[Backend]:
    backend = place.open()
    yield backend
    backend.close()


# What is chosen


def a_shard(*scores: float, more: bool = False, barred: int = 0, total: int = -1) -> Shard:
    """Entries of 10 bytes, the first `barred` of them quarantined."""
    lowest = [
        Victim(int(place >= barred), score, f"{score}", 10, f"{score}")
        for place, score in enumerate(scores)
    ]
    return Shard(10 * len(scores) if total < 0 else total, more, lowest)


def chosen(shards: list[Shard], to_bytes: int, limit: int = 100) -> dict[int, list[float]]:
    shares = plan(shards, to_bytes, limit)
    return {place: [victim.score for victim in share.victims] for place, share in shares.items()}


def test_the_lowest_over_all_shards_are_chosen() -> None:
    shards = [a_shard(1, 4, 9), a_shard(), a_shard(2, 3, 20), a_shard(30, 5, barred=1)]
    assert chosen(shards, 40) == {3: [30], 0: [1], 2: [2, 3]}
    assert chosen(shards, 80) == {}
    assert chosen(shards, 0, limit=2) == {3: [30], 0: [1]}


def test_a_choice_ends_where_a_shard_may_have_lower_ones() -> None:
    assert chosen([a_shard(1, 2, more=True), a_shard(3, 4)], 0) == {0: [1, 2]}
    assert chosen([a_shard(1, 9, more=True), a_shard(3, 4)], 0) == {0: [1, 9], 1: [3, 4]}
    assert chosen([a_shard(more=True), a_shard(3, 4)], 0) == {}


def test_a_shard_stops_at_what_the_choice_leaves_it() -> None:
    shares = plan([a_shard(1, 2), a_shard(3, 40, total=100)], 85, 100)
    assert {place: share.floor for place, share in shares.items()} == {0: 0, 1: 85}


def test_the_union_of_two_choices_is_one_choice() -> None:
    """Two evictors look while the other removes: the second's choice is what the first has left."""
    dice = random.Random(3)
    for _ in range(200):
        scores = dice.sample(range(1000), 40)
        shards = [sorted(scores[place::4]) for place in range(4)]
        whole = chosen([a_shard(*shard) for shard in shards], 150)
        seen = [
            [score for score in shard if score not in whole.get(place, []) or dice.random() < 0.5]
            for place, shard in enumerate(shards)
        ]
        later = chosen([a_shard(*shard) for shard in seen], 150)
        assert all(set(later[place]) <= set(whole.get(place, [])) for place in later)


# Evictors that meet others


def test_what_is_touched_between_the_look_and_the_removal_stays(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        publish(backend, an_entry(number, blob_bytes=100, score=float(number)))
    meets = iter(
        [
            lambda: backend.touch(an_entry(0), NOW, 50.0),  # 0 and 1 are chosen
            lambda: backend.update(a_key(2), Change(pinned=True)),  # 2 is
            lambda: backend.delete(a_key(0), "deleted"),  # 3 is, and need not go any more
        ]
    )
    choose = evicting.plan

    def meet(*arguments: object) -> object:
        shares = choose(*arguments)  # type: ignore[arg-type]
        next(meets, bool)()
        return shares

    monkeypatch.setattr(evicting, "plan", meet)
    assert backend.evict(200, NOW, limit=10) == Evicted(1, 100)
    assert {entry.key for entry in backend.entries(EntryFilter())} == {a_key(2), a_key(3)}
    assert backend.usage().age == 1.0


def test_evictors_on_a_cluster_take_one_budget_between_them() -> None:
    with running_cluster() as nodes:
        place = RedisPlace(f"redis+cluster://127.0.0.1:{nodes[0].port}", nodes, "statestore")
        backends = [place.open() for _ in range(4)]
        for number in range(400):
            publish(backends[0], an_entry(number, blob_bytes=100, score=float(number)))
        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(backends[n % 4].evict, 10_000, NOW) for n in range(8)]
            taken = [call.result() for call in calls]
        assert sum(one.entries for one in taken) == 300
        assert backends[0].usage() == Usage(100, 10_000, 20_000, 0, 0, age=299.0)
        for backend in backends:
            backend.close()


# Readers


def test_a_reader_in_the_middle_keeps_its_blob(
    backend: Backend, place: RedisPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evicting, "LINGER_MS", 60_000)
    entry = an_entry(0, blob_bytes=5_000_000)
    publish(backend, entry)
    assert backend.evict(0, NOW) == Evicted(1, 5_000_000)
    assert backend.longest([entry.key], NOW) is None
    assert backend.read(entry) == a_blob(entry.key, 5_000_000)
    assert backend.sweep(NOW, grace_s=0).blobs == 0  # an operator's sweep leaves it to the reader
    lives_ms = [
        place.at(key, lambda node, key=key: node.pttl(key)) for key in place.keys("{*}:part:*")
    ]
    assert len(lives_ms) == 5
    assert 0 < max(lives_ms) <= 60_000


# Servers in other states


def test_a_full_server_makes_room(server: RedisServer) -> None:
    with running("--maxmemory", "64mb", "--maxmemory-policy", "noeviction") as server:
        place = RedisPlace(server.url, [server], "statestore")
        backend = place.open()
        for number in range(3):
            publish(backend, an_entry(number, score=float(number)))
        backend.update(a_key(2), Change(status=Status.QUARANTINED))
        server.client().config_set("maxmemory", 1)
        with pytest.raises(FullError):
            publish(backend, an_entry(3))
        assert backend.evict(1000, NOW, namespace="default") == Evicted(2, 2000)
        assert backend.usage("default") == Usage(1, 1000, 2000, 0, 0, age=0.0)
        assert backend.evict(0, NOW) == Evicted(1, 1000)
        assert backend.usage() == Usage(0, 0, 0, 0, 0, age=1.0)
        assert set(backend.departed(map(a_key, range(3)))) == {a_key(0), a_key(1), a_key(2)}
        backend.close()


def test_a_full_server_removes_what_is_damaged() -> None:
    """Whatever notes the damage may need room; it had kept the rest from being evicted, too."""
    with running("--maxmemory-policy", "noeviction") as server:
        place = RedisPlace(server.url, [server], "statestore")
        backend = place.open()
        for number in range(4):
            publish(backend, an_entry(number, score=float(number)))
        with server.client() as client:
            for number in range(3):
                (key,) = place.keys(f"{{*}}:entry:{a_key(number).hex}")
                client.hset(key, "blob_bytes", "many")
            client.config_set("maxmemory", 1)
        assert backend.update(a_key(0), Change(status=Status.QUARANTINED))
        assert backend.delete(a_key(1), "a test")
        assert backend.evict(0, NOW).entries == 3
        backend.close()


@pytest.mark.parametrize("namespace", [None, "default"])
def test_entries_that_the_server_evicted_do_not_hinder(
    backend: Backend, place: RedisPlace, namespace: str | None
) -> None:
    """The orders still name them; the totals still count them, and are mended by a sweep."""
    for number in range(300):
        publish(backend, an_entry(number, blob_bytes=10, score=float(number)))
    lost = [key for key in place.keys("{*}:entry:*") if int(key[-2:], 16) % 2]
    place.at("", lambda node: node.delete(*lost))
    left = 300 - len(lost)
    assert 0 < left < 300
    assert backend.evict(10, NOW, namespace=namespace, limit=left // 2).entries == left // 2
    backend.sweep(NOW, grace_s=0)
    assert backend.evict(10, NOW, namespace=namespace, limit=1000).entries == left - left // 2 - 1
    assert backend.usage().blob_bytes == backend.usage("default").blob_bytes == 10


def test_entries_of_an_earlier_release(backend: Backend, place: RedisPlace) -> None:
    """They had no ancestor, no order of their namespace and no totals of it: readable at once,
    counted in full after a sweep."""
    entries = [
        an_entry(n, blob_bytes=100, namespace="ab"[n % 2], score=float(n), ancestor_tokens=n)
        for n in range(6)
    ]
    for entry in entries:
        publish(backend, entry)
    backend.update(a_key(4), Change(status=Status.QUARANTINED))
    make_old(place)
    found = backend.longest([a_key(1)], NOW)
    assert found is not None
    assert found.ancestor_tokens == 0
    assert backend.read(found) == a_blob(a_key(1), 100)
    assert backend.usage() == Usage(6, 600, 1200, 1, 0)
    assert backend.delete(a_key(5), "deleted")
    backend.touch(entries[3], NOW, 3.0)
    backend.sweep(NOW, grace_s=1e9)
    assert backend.usage("a") == Usage(3, 300, 600, 1, 0)
    assert backend.usage("b") == Usage(2, 200, 400, 0, 0)
    assert backend.evict(200, NOW, namespace="a") == Evicted(1, 100)
    assert set(backend.departed([a_key(4)])) == {a_key(4)}
    assert backend.evict(0, NOW) == Evicted(4, 400)
    assert backend.usage() == Usage(0, 0, 0, 0, 0, age=3.0)


def make_old(place: RedisPlace) -> None:
    """Take away what the first release did not write."""

    def work(node: object) -> None:
        base = f"{place.prefix}:1:{{00}}:"
        for key in place.keys("{*}:entry:*"):
            node.hdel(key, "ancestor_tokens")  # type: ignore[attr-defined]
        for member, score in node.zrange(f"{base}barred", 0, -1, withscores=True):  # type: ignore[attr-defined]
            node.zadd(f"{base}order", {member: score})  # type: ignore[attr-defined]
        node.delete(f"{base}barred", f"{base}ranks")  # type: ignore[attr-defined]
        for total in node.hkeys(f"{base}totals"):  # type: ignore[attr-defined]
            if b":" in total:
                node.hdel(f"{base}totals", total)  # type: ignore[attr-defined]

    place.at("", work)


def test_a_namespace_is_text(backend: Backend) -> None:
    for call in (backend.usage, lambda name: backend.evict(0, NOW, namespace=name)):
        with pytest.raises(InputError, match="namespace"):
            call("a\x00b")


def test_namespaces_leave_nothing_behind(backend: Backend, place: RedisPlace) -> None:
    for number in range(20):
        publish(backend, an_entry(number, namespace=f"tenant {number}"))
    for number in range(1, 20):
        assert backend.evict(0, NOW, namespace=f"tenant {number}").entries == 1
    (totals,), (ranks,) = place.keys("{*}:totals"), place.keys("{*}:ranks")
    names = place.at("", lambda node: node.hkeys(totals))
    assert {name for name in names if b":" in name} <= {
        b"%b:tenant 0" % name for name in names if b":" not in name
    }
    assert place.at("", lambda node: node.zcard(ranks)) == 1
