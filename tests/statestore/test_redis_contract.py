"""The contracts of `test_backend_contract` and `test_listing_contract`, and the model of
`test_backend_model`, on Redis: one server, and a Cluster of three nodes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.statestore.backend_places import Place
from tests.statestore.redis_places import RedisPlace
from tests.statestore.redis_servers import RedisServer, running, running_cluster
from tests.statestore.test_backend_contract import BackendContract
from tests.statestore.test_backend_model import BackendModel
from tests.statestore.test_listing_contract import ListingContract

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
    pass
