"""A slot of a Cluster that stays between two nodes: what lies in it is missed, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import ResponseError

from statestore import StateStore, open_store
from statestore.backends.redis import server
from statestore.store import PutOutcome
from tests.places.backend_places import a_key
from tests.places.redis_servers import RedisServer, node_of, running_cluster
from tests.places.states import OURS, put

SHARD = 7  # whose slot moves
SLOT = key_slot(f"{{{SHARD:02x}}}".encode())
PATIENT = "find_ms=30000&fetch_ms=30000"
MOVING = [number for number in range(3000) if a_key(number).digest[0] % 128 == SHARD]
RESTING = [number for number in range(100) if a_key(number).digest[0] % 128 != SHARD]


@pytest.fixture
def nodes() -> Iterator[list[RedisServer]]:
    with running_cluster() as servers:
        yield servers


@pytest.fixture
def store(nodes: list[RedisServer]) -> Iterator[StateStore]:
    with open_store(f"redis+cluster://127.0.0.1:{nodes[0].port}?{PATIENT}") as opened:
        yield opened


class Move:
    """Of the slot, from the node that has it to another one, a step at a time."""

    def __init__(self, nodes: list[RedisServer]) -> None:
        self._nodes = nodes
        self._source = node_of(nodes, f"{{{SHARD:02x}}}")
        names = {node.port: node.client().execute_command("CLUSTER MYID") for node in nodes}
        here = self._source.connection_pool.connection_kwargs["port"]
        self._port, self._name = next((p, name) for p, name in names.items() if p != here)
        with self._target() as target:
            target.execute_command("CLUSTER SETSLOT", SLOT, "IMPORTING", names[here])
        self._source.execute_command("CLUSTER SETSLOT", SLOT, "MIGRATING", self._name)

    def some(self, share: float) -> None:
        """Move this share of the keys that are left."""
        names = self._source.execute_command("CLUSTER GETKEYSINSLOT", SLOT, 10_000)
        names = names[: round(share * len(names))]
        order = ("MIGRATE", "127.0.0.1", self._port, "", 0, 5000, "KEYS", *names)
        assert self._source.execute_command(*order) == (b"OK" if names else b"NOKEY")

    def stop_importing(self) -> None:
        with self._target() as target:
            target.execute_command("CLUSTER SETSLOT", SLOT, "STABLE")

    def end(self) -> None:
        for node in sorted(self._nodes, key=lambda node: node.port != self._port):
            with node.client() as client:
                client.execute_command("CLUSTER SETSLOT", SLOT, "NODE", self._name)
        self._source.close()

    def _target(self) -> Redis:
        return next(node for node in self._nodes if node.port == self._port).client()


def found(store: StateStore, *numbers: int) -> int | None:
    """Which of these the deepest of is there."""
    hit = store.find(OURS, [a_key(number) for number in numbers])
    return None if hit is None else hit.entry.key.n_tokens - 1


def test_a_slot_on_its_way_costs_what_lies_in_it(
    nodes: list[RedisServer], store: StateStore
) -> None:
    """Each lookup of a long prompt asks there too: it had failed, and all others for seconds."""
    here, there, new = RESTING[0], MOVING[0], iter(MOVING[1:])
    for number in (here, there):
        assert put(store, number) is PutOutcome.PUBLISHED
    move = Move(nodes)
    for share in (0.0, 0.5, 1.0):
        move.some(share)
        assert found(store, next(new), *RESTING[10:50], here) == here
        assert put(store, RESTING[1 + int(2 * share)]) is PutOutcome.PUBLISHED
        assert found(store, there) in (there, None)
        assert put(store, next(new)) in (PutOutcome.PUBLISHED, PutOutcome.DROPPED)
    move.end()
    assert found(store, next(new), there) == there
    assert put(store, next(new)) is PutOutcome.PUBLISHED
    for calls in ("all", "writes"):
        opened = {"place": store.backend.url, "calls": calls}
        assert store.metrics.value("breaker_openings_total", **opened) == 0


def test_a_move_that_one_side_knows_nothing_of(nodes: list[RedisServer], store: StateStore) -> None:
    """Each node sends to the other: a replica that took over forgets what it was to import."""
    here = RESTING[0]
    assert put(store, here) is PutOutcome.PUBLISHED
    move = Move(nodes)
    move.stop_importing()
    assert found(store, MOVING[0], *RESTING[10:50], here) == here
    assert found(store, MOVING[0], MOVING[1]) is None
    assert put(store, MOVING[0]) is PutOutcome.DROPPED
    assert put(store, RESTING[1]) is PutOutcome.PUBLISHED
    assert store.metrics.value("errors_total", operation="find") == 0
    move.end()
    assert put(store, MOVING[0]) is PutOutcome.PUBLISHED


def test_a_budget_is_kept_beside_a_slot_on_its_way(nodes: list[RedisServer]) -> None:
    """Who makes room asks all shards: no state had been stored until the slot had come."""
    url = f"redis+cluster://127.0.0.1:{nodes[0].port}?{PATIENT}&budget=20kB"
    with open_store(url) as store:
        for number in (*RESTING[:30], *MOVING[:3]):
            assert put(store, number) is PutOutcome.PUBLISHED
        move = Move(nodes)
        for first, share in ((30, 0.5), (40, 1.0)):
            before = store.usage()
            move.some(share)
            assert store.usage() == before
            for number in RESTING[first : first + 10]:
                assert put(store, number) is PutOutcome.PUBLISHED
            assert store.usage().blob_bytes <= 20_000
        move.end()
        assert put(store, RESTING[50]) is PutOutcome.PUBLISHED


@pytest.mark.parametrize(
    "said",
    [
        "@user_script: 1: Lua script attempted to access a non local key in a cluster node",
        "Script attempted to access a non local key in a cluster node script: 1, on @user_script",
        "undeclared keys were accessed during rehashing of the slot script: 1, on @user_script:1.",
    ],
    ids=["6.2", "7.0", "later"],
)
def test_what_servers_say_in_a_script_of_a_slot_on_its_way(said: str) -> None:
    assert server._moves(ResponseError(said))
    assert not server._moves(ResponseError("Script attempted to execute a command while the ..."))
