"""A Redis server as a `Place` of the contracts; raw access goes through redis-py alone.

The names and the shape of keys are written down here a second time on purpose: what the code under
test writes is not read back by the same code.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.crc import key_slot

from statestore.backends.base import Backend
from statestore.backends.redis.address import Address
from statestore.backends.redis.backend import open_redis_backend
from statestore.url import StoreURL
from tests.places.backend_places import open_backend
from tests.places.redis_servers import RedisServer, node_of

PART = 1_047_552  # bytes: 1 MiB - 1 KiB
UNPUBLISHED_MS = 600_000
LINGER_MS = 60_000
SHARDS = {"": 1, "cluster": 128}


def open_url(text: str) -> Backend:
    """The backend at a URL, with its options, as a store opens it."""
    url = StoreURL.parse(text)
    return open_redis_backend(Address.of(url.scheme, url.netloc, url.path, url.options))


class RedisPlace:
    """A `Place` on one server, or on the nodes of a Cluster; each under a prefix of its own."""

    def __init__(self, url: str, nodes: list[RedisServer], prefix: str) -> None:
        self.url = f"{url}?prefix={prefix}&timeout_s=30&connect_timeout_s=10"
        self.nodes = nodes
        self.prefix = prefix
        self._holders: dict[int, Redis] = {}  # by slot; no test moves slots and looks into them
        self.shards = 128 if "+cluster" in url else 1

    def open(self) -> Backend:
        return open_backend(f"{self.url}&find_ms=0")  # a loaded machine is no dead place

    def keys(self, pattern: str) -> list[str]:
        found: list[str] = []
        for node in self.nodes:
            with node.client() as client:
                found += [key.decode() for key in client.keys(f"{self.prefix}:1:{pattern}")]
        return found

    def at(self, name: str, work: Callable[[Redis], Any]) -> Any:
        """The result of `work` at the node that holds the key."""
        if len(self.nodes) == 1:
            with self.nodes[0].client() as node:
                return work(node)
        slot = key_slot(name.encode())
        if slot not in self._holders:
            self._holders[slot] = node_of(self.nodes, name)
        return work(self._holders[slot])

    def name(self, blob: str, index: int) -> str:
        shard = int(blob[:2], 16) % self.shards
        return f"{self.prefix}:1:{{{shard:02x}}}:part:{blob}:{index}"

    def parts(self) -> dict[str, list[str]]:
        """The parts' keys of each blob, in order."""
        found: dict[str, list[str]] = defaultdict(list)
        for key in sorted(self.keys("{*}:part:*"), key=lambda key: int(key.rpartition(":")[2])):
            match = re.fullmatch(r".*:part:(.*):\d+", key)
            assert match is not None
            found[match[1]].append(key)
        return found

    def blob_names(self) -> set[str]:
        """Without what is about to go: parts of an evicted blob linger for its readers."""
        return {name for name, keys in self.parts().items() if not any(map(self.goes, keys))}

    def goes(self, key: str) -> bool:
        left_ms: int = self.at(key, lambda node: node.pttl(key))
        return left_ms != -1 and left_ms <= LINGER_MS

    def read_blob(self, name: str) -> bytes:
        return b"".join(self.at(key, lambda node: node.get(key)) for key in self.parts()[name])  # noqa: B023

    def write_blob(self, name: str, content: bytes, age_s: float) -> None:
        """As a writer that died `age_s` ago left it."""
        left_ms = int(UNPUBLISHED_MS - age_s * 1000)
        for index in range(max(1, -(-len(content) // PART))):
            key, part = self.name(name, index), content[index * PART : (index + 1) * PART]
            self.at(key, lambda node: node.set(key, part, px=left_ms))  # noqa: B023

    def remove_blob(self, name: str) -> None:
        for key in self.parts()[name]:
            self.at(key, lambda node: node.delete(key))  # noqa: B023

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        for key in self.keys("{*}:entry:*"):
            raw = self.at(key, lambda node: node.hgetall(key))  # noqa: B023
            row: dict[str, Any] = {name.decode(): value for name, value in raw.items()}
            for name in ("namespace", "status"):
                row[name] = row[name].decode()
            row["blob"] = key[-64:] + row["blob"].decode()  # without the digest that it begins with
            for name in ("blob_bytes", "state_bytes", "pinned"):
                row[name] = int(row[name])
            rows.append(row)
        return rows
