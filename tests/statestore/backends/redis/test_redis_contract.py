"""The contracts of `test_backend_contract` and `test_listing_contract`, and the model of
`test_backend_model`, on Redis: one server, and a Cluster of three nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from statestore.backends.base import Backend
from statestore.backends.redis.address import Address
from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.lookups import RedisLookups
from statestore.backends.redis.server import Server
from statestore.backends.redis.sightings import RedisSightings
from statestore.entry import EntryFilter, Evicted
from tests.places.backend_places import (
    CREATED_AT,
    Place,
    a_blob,
    a_key,
    an_entry,
    publish,
)
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import RedisServer, running, running_cluster, wait_until
from tests.statestore.contracts.test_backend_contract import BackendContract
from tests.statestore.contracts.test_backend_model import DisasterModel
from tests.statestore.contracts.test_eviction_contract import EvictionContract
from tests.statestore.contracts.test_lease_contract import LeaseContract
from tests.statestore.contracts.test_listing_contract import NOW, ListingContract
from tests.statestore.contracts.test_lookups_contract import LookupsContract, bounded, known, some
from tests.statestore.contracts.test_sightings_contract import SightingsContract, a_prompt

prefixes = (f"test{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[RedisServer]]:
    with running_cluster() as nodes:
        yield nodes


def cluster_place(nodes: list[RedisServer]) -> RedisPlace:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return RedisPlace(f"redis+cluster://{hosts}", nodes, next(prefixes))


class OnOneServer:
    @pytest.fixture
    def place(self, server: RedisServer) -> Place:
        return RedisPlace(server.url, [server], next(prefixes))


class OnACluster:
    @pytest.fixture
    def place(self, nodes: list[RedisServer]) -> Place:
        return cluster_place(nodes)


class TestRedisBackend(OnOneServer, BackendContract):
    pass


class TestRedisListing(OnOneServer, ListingContract):
    pass


class TestClusterBackend(OnACluster, BackendContract):
    pass


class TestClusterListing(OnACluster, ListingContract):
    def test_a_listing_goes_on_while_others_write(self, backend: Backend) -> None:
        """A page is read from every shard at once, so what is deleted then may still be listed."""
        for number in range(260):
            publish(backend, an_entry(number, blob_bytes=1))
        listing = backend.entries(EntryFilter())
        first = next(listing)
        backend.delete(a_key(0), "deleted")
        backend.touch(first, NOW, 0.0)
        publish(backend, an_entry(1000, blob_bytes=1, used_at=CREATED_AT + 1000))
        rest = [entry.key for entry in listing]
        assert set(rest) - {a_key(0)} == {a_key(number) for number in range(1, 259)}
        assert len(rest) == len(set(rest))


class LingeringEviction(EvictionContract):
    def test_what_was_read_stays_readable(self, backend: Backend, place: Place) -> None:
        """Also for one who read the entry before, and reads its blob after: for a moment."""
        entry = an_entry(0, blob_bytes=3_000_000)
        publish(backend, entry)
        assert backend.evict(0, NOW) == Evicted(1, 3_000_000)
        assert backend.read(entry) in (a_blob(entry.key, 3_000_000), None)
        assert place.blob_names() == set()
        wait_until(lambda: backend.read(entry) is None, "its parts to expire")


class TestRedisEviction(OnOneServer, LingeringEviction):
    pass


class TestClusterEviction(OnACluster, LingeringEviction):
    pass


class TestRedisLeases(OnOneServer, LeaseContract):
    pass


class TestClusterLeases(OnACluster, LeaseContract):
    pass


class TestRedisSightings(OnOneServer, SightingsContract):
    def test_it_is_bounded_and_expires_when_nobody_uses_it(self, server: RedisServer) -> None:
        prefix = next(prefixes)
        address = Address.of("redis", f"127.0.0.1:{server.port}", "", {})
        with closing(Server(address)) as connection, server.client() as client:
            index = RedisSightings(connection, Keyspace(prefix, 1), sightings=1024)
            for number in range(64):
                index.note(a_prompt(f"{number}", 64))
            name = f"{prefix}:1:{{00}}:sightings"
            assert client.strlen(name) == 4 * 1024
            assert 29 < client.ttl(name) / 86400 <= 30
            newest = [index.seen([a_prompt(f"{number}", 64)[-1]]) for number in range(56, 64)]
            assert sum(newest) == 8
            oldest = [index.seen([one]) for n in range(16) for one in a_prompt(f"{n}", 64)]
            assert sum(oldest) < 64  # of 1,024


class TestClusterSightings(OnACluster, SightingsContract):
    pass


class TestRedisLookups(OnOneServer, LookupsContract):
    def test_rows_are_bounded(self, server: RedisServer) -> None:
        address = Address.of("redis", f"127.0.0.1:{server.port}", "", {})
        with closing(Server(address)) as connection:
            bounded(RedisLookups(connection, Keyspace(next(prefixes), 1), rows=10))

    @pytest.mark.parametrize(
        "fields", [None, {"junk": "x", "found:zz::a": "1", "since:00::a": "?"}]
    )
    def test_what_a_hand_left_there_is_in_nobodys_way(
        self, server: RedisServer, fields: dict[str, str] | None
    ) -> None:
        prefix = next(prefixes)
        name = f"{prefix}:1:{{00}}:lookups"
        address = Address.of("redis", f"127.0.0.1:{server.port}", "", {})
        with closing(Server(address)) as connection, server.client() as client:
            tally = RedisLookups(connection, Keyspace(prefix, 1))
            if fields is None:
                client.set(name, "a string")
            else:
                client.hset(name, mapping=fields)
            assert known(tally) == set()
            tally.add([some()])
            assert known(tally) == {some()}


class TestClusterLookups(OnACluster, LookupsContract):
    pass


class OnServers:
    """Of a model on Redis."""

    place: RedisPlace

    def connections(self) -> int:
        def of(node: RedisServer) -> int:
            with node.client() as client:
                return int(client.info("clients")["connected_clients"])

        return sum(map(of, self.place.nodes))


class RedisModel(OnServers, DisasterModel):
    """The model on one server, in a keyspace that no other run has."""

    server: ClassVar[RedisServer]

    def __init__(self) -> None:
        super().__init__()
        self.backend.close()
        self.place = RedisPlace(self.server.url, [self.server], next(prefixes))
        self.backend = self.place.open()


class ClusterModel(OnServers, DisasterModel):
    """As `RedisModel`, over the shards of a Cluster."""

    nodes: ClassVar[list[RedisServer]]

    def __init__(self) -> None:
        super().__init__()
        self.backend.close()
        self.place = cluster_place(self.nodes)
        self.backend = self.place.open()


#: A few by default; the profile "nightly" has a thousand.
FEW = 12 if settings().max_examples <= 100 else settings().max_examples
STEPS = settings(max_examples=FEW, stateful_step_count=25, deadline=None)


def test_any_sequence_of_calls_on_one_server(server: RedisServer) -> None:
    RedisModel.server = server
    run_state_machine_as_test(RedisModel, settings=STEPS)


def test_any_sequence_of_calls_on_a_cluster(nodes: list[RedisServer]) -> None:
    ClusterModel.nodes = nodes
    run_state_machine_as_test(ClusterModel, settings=settings(STEPS, max_examples=FEW // 2))
