"""What is particular to Redis: one round trip, a bounded memory of removals, neighbours on the same
server, a whole store; Sentinel's failover, a Cluster that moves its slots or loses a node.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import threading
from collections.abc import Iterator

import pytest

from statestore import open_store
from statestore.backends.redis import scripts, shard
from statestore.entry import EntryFilter, Role
from statestore.errors import UnavailableError
from statestore.store import Identity, PutOutcome
from tests.places.backend_places import CREATED_AT, a_blob, a_key, an_entry, publish
from tests.places.redis_places import RedisPlace, open_url
from tests.places.redis_servers import (
    RedisServer,
    free_port,
    running,
    running_cluster,
    sentinel_of,
    wait_until,
)
from tests.statestore.codec.codec_samples import FINGERPRINT, KEY, TOKENS, assert_same, small_state

NOW = CREATED_AT + 10_000
IDENTITY = Identity(FINGERPRINT)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def place(server: RedisServer, request: pytest.FixtureRequest) -> RedisPlace:
    return RedisPlace(server.url, [server], request.node.originalname or request.node.name)


@pytest.mark.parametrize("stored", [None, 0, 3999])
def test_a_lookup_is_one_command(
    server: RedisServer, place: RedisPlace, stored: int | None
) -> None:
    backend = place.open()
    if stored is not None:
        publish(backend, an_entry(stored))
    backend.longest([a_key(0)], NOW)  # now the server knows the script
    client = server.client()
    client.config_resetstat()
    found = backend.longest([a_key(number) for number in range(4000)], NOW)
    assert (found is None) is (stored is None)
    sent = {name: row["calls"] for name, row in client.info("commandstats").items()}
    assert sent["cmdstat_evalsha"] == 1
    assert "cmdstat_eval" not in sent
    backend.close()


@pytest.mark.parametrize("size", [0, 1, 1_047_551, 1_047_552, 1_047_553, 5_000_000])
def test_sizes_about_a_part(place: RedisPlace, size: int) -> None:
    backend = place.open()
    entry = an_entry(size, blob_bytes=size)
    whole = a_blob(entry.key, size)
    assert backend.publish(entry, [whole[:7], whole[7:1_500_000], b"", whole[1_500_000:]])
    assert backend.read(entry) == place.read_blob(entry.blob) == whole
    assert len(place.parts()[entry.blob]) == max(1, -(-size // 1_047_552))
    backend.close()


def test_a_part_wastes_little_of_the_servers_memory(server: RedisServer, place: RedisPlace) -> None:
    backend = place.open()
    entry = an_entry(0, blob_bytes=1_047_552)
    publish(backend, entry)
    (key,) = place.parts()[entry.blob]
    assert server.client().memory_usage(key) < 1.01 * (1 << 20)
    backend.close()


def test_the_memory_of_removals_is_bounded(
    place: RedisPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "DEPARTED_ENTRIES", 20)
    backend = place.open()
    for number in range(50):
        publish(backend, an_entry(number))
        backend.delete(a_key(number), "deleted")
    known = backend.departed([a_key(number) for number in range(50)])
    assert set(known) == {a_key(number) for number in range(30, 50)}
    (departed,) = place.keys("{*}:departed")
    assert place.at(departed, lambda node: node.hlen(departed)) == 20
    backend.close()


def test_neighbours_on_one_server_do_not_meet(server: RedisServer) -> None:
    one, other = (RedisPlace(server.url, [server], name) for name in ("one", "one:2"))
    server.client().set("somebody else's", "value")
    mine, theirs = one.open(), other.open()
    publish(mine, an_entry(0))
    assert theirs.longest([a_key(0)], NOW) is None
    publish(theirs, an_entry(0, model="theirs"))
    publish(theirs, an_entry(1, expires_at=NOW))
    assert mine.sweep(NOW, grace_s=0).expired == 0
    assert mine.delete(a_key(0), "deleted")
    found = theirs.longest([a_key(0)], NOW)
    assert found is not None
    assert found.model == "theirs"
    assert theirs.usage().entries == 2
    assert server.client().get("somebody else's") == b"value"
    mine.close()
    theirs.close()


def test_a_whole_store(server: RedisServer, place: RedisPlace) -> None:
    state = small_state()
    with open_store(place.url + "&codec=raw") as store:
        put = {"token_digest": TOKENS, "role": Role.SEGMENT}
        assert store.put(IDENTITY, KEY, state, **put) is PutOutcome.PUBLISHED
        assert store.put(IDENTITY, KEY, state, **put) is PutOutcome.PRESENT
        found = store.find(IDENTITY, [a_key(9), KEY])
        assert found is not None
        assert_same(found.state, state)
        assert store.entry(KEY.hex[:9]).hits == 1
        assert store.holds(found.entry)
        ((part,),) = place.parts().values()
        server.client().setrange(part, 200, b"\xff\x00\xff")
        assert store.find(IDENTITY, [KEY]) is None
        assert store.usage().quarantined == 1
        assert store.put(IDENTITY, KEY, state, **put) is PutOutcome.PUBLISHED
        assert store.find(IDENTITY, [KEY]) is not None


def test_a_store_without_its_server_costs_a_miss_each_time() -> None:
    with open_store(f"redis://127.0.0.1:{free_port()}?timeout_s=0.3") as store:
        assert store.find(IDENTITY, [KEY]) is None
        dropped = store.put(IDENTITY, KEY, small_state(), token_digest=TOKENS, role=Role.SEGMENT)
        assert dropped is PutOutcome.DROPPED


def test_putting_again_what_was_published_says_so(place: RedisPlace) -> None:
    """A Cluster may send a command a second time; the writer must not take back its own parts."""
    backend = open_url(place.url)
    entry = an_entry(0)
    publish(backend, entry)
    command = scripts.publication(f"{place.prefix}:1:{{00}}:", entry)
    assert backend._server.run([command, command]) == [scripts.PUBLISHED] * 2
    assert backend.usage().entries == 1
    assert backend.read(entry) == a_blob(entry.key)
    backend.close()


def test_of_two_who_write_at_once_the_first_to_publish_wins(
    place: RedisPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both had looked before either was there; whoever reads the first keeps its parts."""
    backend = open_url(place.url)
    monkeypatch.setattr(backend, "_is_stored", lambda _entry: False)
    first, second = an_entry(0, model="first"), an_entry(0, model="second")
    assert publish(backend, first)
    assert not publish(backend, second)
    found = backend.longest([first.key], NOW)
    assert found is not None
    assert (found.model, found.blob) == ("first", first.blob)
    assert place.blob_names() == {first.blob}
    assert backend.usage().entries == 1
    backend.close()


def test_a_server_that_forgets_its_scripts(server: RedisServer, place: RedisPlace) -> None:
    """As one does that was restarted, or has just become the primary."""
    backend = place.open()
    entries = [an_entry(number, expires_at=NOW) for number in range(3)]
    for entry in entries:
        server.client().script_flush()
        assert publish(backend, entry)
    server.client().script_flush()
    assert backend.longest([a_key(0)], NOW - 1) == entries[0]
    server.client().script_flush()
    assert backend.sweep(NOW, grace_s=0).expired == 3  # in one round trip, and one more
    assert backend.usage().entries == 0
    backend.close()


# Sentinel


def test_a_failover() -> None:
    fast = ("--repl-diskless-sync-delay", "0")
    with running(*fast) as primary, running(*fast) as replica, sentinel_of(primary) as port:
        replica.client().replicaof("127.0.0.1", str(primary.port))
        backend = open_url(f"redis+sentinel://127.0.0.1:{port}/fleet?timeout_s=2")
        wait_until(lambda: replica.client().info()["master_link_status"] == "up", "the replica")
        entry = an_entry(0, blob_bytes=3_000_000)
        wait_until(lambda: tried(lambda: publish(backend, entry) or True), "Sentinel to answer")
        primary.client().wait(1, 5000)
        from_sentinel = RedisServer(primary.directory, port=port).client()
        wait_until(
            lambda: from_sentinel.execute_command("SENTINEL REPLICAS fleet"), "the replica's name"
        )
        primary.stop()
        with pytest.raises(UnavailableError):
            backend.usage()
        wait_until(lambda: replica.client().role()[0] == b"master", "the failover")
        wait_until(lambda: tried(lambda: publish(backend, an_entry(1))), "a put")
        assert backend.longest([entry.key], NOW) == entry
        assert backend.read(entry) == a_blob(entry.key, 3_000_000)
        backend.close()


def tried(call: object) -> bool:
    try:
        return call()  # type: ignore[operator]
    except UnavailableError:
        return False


# A Cluster


def test_a_node_of_a_cluster_is_no_single_server() -> None:
    with running_cluster() as nodes:
        places = [RedisPlace(node.url, [node], "statestore") for node in nodes]
        backends = [place.open() for place in places]
        refused = 0
        for backend in backends:
            try:
                backend.usage()
            except UnavailableError as error:
                refused += "redis+cluster://" in str(error)
            backend.close()
        assert refused == 2  # the third holds the only shard of a single server


def test_a_cluster_that_moves_its_slots_and_then_loses_a_node() -> None:
    with running_cluster() as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}"
        place = RedisPlace(url, nodes, "statestore")
        backend = place.open()
        entries = [an_entry(number, blob_bytes=1_500_000) for number in range(20)]
        for entry in entries:
            publish(backend, entry)
        failures: list[BaseException] = []
        done = threading.Event()

        def read_on() -> None:
            """Right or a miss: while its slot moves, a state may be here and its entry there."""
            try:
                while not done.is_set():
                    for entry in entries:
                        assert backend.longest([entry.key], NOW) in (entry, None)
                        assert backend.read(entry) in (a_blob(entry.key, 1_500_000), None)
            except BaseException as error:
                failures.append(error)

        reader = threading.Thread(target=read_on)
        reader.start()
        move_slots(nodes, 1500)
        done.set()
        reader.join()
        assert failures == []
        for entry in entries:
            assert backend.longest([entry.key], NOW) == entry
            assert backend.read(entry) == a_blob(entry.key, 1_500_000)
        assert backend.usage().entries == 20
        assert len(list(backend.entries(EntryFilter()))) == 20
        impatient = open_url(url + "?timeout_s=1&connect_timeout_s=1")
        for first in range(3):
            assert impatient.usage().entries == 20
            before = connected(nodes[2])
            nodes[2].pause()  # forty shards wait for one timeout, not for forty
            begin_with(first)
            with pytest.raises(UnavailableError, match="Timeout"):
                impatient.usage()
            nodes[2].go_on()
            assert connected(nodes[2]) == before + 1  # nor is it asked for a new map of the slots
            wait_until(lambda: tried(lambda: impatient.usage().entries == 20), "the node")
        nodes[2].stop()
        with pytest.raises(UnavailableError):
            impatient.usage()
        impatient.close()
        backend.close()


def connected(node: RedisServer) -> int:
    """How many connections it has ever had, with this one."""
    with node.client() as client:
        return int(client.info("stats")["total_connections_received"])


def begin_with(first: int) -> None:
    """The client asks nodes in an order that it shuffles: this one of three would be the first."""
    for seed in itertools.count():
        random.seed(seed)
        order = [0, 1, 2]
        random.shuffle(order)
        if order[0] == first:
            random.seed(seed)
            return


def move_slots(nodes: list[RedisServer], count: int) -> None:
    """Move slots from the first node to the second, while others use them."""
    with nodes[0].client() as one, nodes[1].client() as two:
        names = [node.execute_command("CLUSTER MYID").decode() for node in (one, two)]
    subprocess.run(
        ["redis-cli", "--cluster", "reshard", f"127.0.0.1:{nodes[0].port}", "--cluster-from",
         names[0], "--cluster-to", names[1], "--cluster-slots", str(count), "--cluster-yes"],
        check=True,
        capture_output=True,
    )  # fmt: skip
