"""From an address to redis-py's client of the right kind. Nothing is contacted, but by a Cluster's
client: it asks for the map of slots.

A command is tried once: what the caller does without an answer is the caller's business, and a
server that is down is to cost its timeout once. Only a Cluster's redirections are followed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry
from redis.sentinel import Sentinel

from statestore.backends.redis.address import TLS_FILES, Address, Credentials
from statestore.errors import SettingsError

#: Followed for one command; a slot that has moved asks for one. Where it is between two nodes,
#: redis-py's 16 take up to 0.9 s, longer than a lookup may.
_REDIRECTIONS: Final = 4
_READ_BYTES: Final = 128 << 10  # of one receive; 64 to 256 KiB measured alike, more is slower


def require_files(address: Address) -> None:
    """Raises `SettingsError` where a certificate or key that the URL names cannot be read."""
    for name in TLS_FILES & address.tls_options.keys():
        path = Path(address.tls_options[name])
        try:
            path.open("rb").close()
        except OSError as error:
            raise SettingsError(
                f"store URL {address.url}: {name}: {path}: {error.strerror}"
            ) from error


def new_client(address: Address) -> Any:  # noqa: ANN401 - redis-py's clients share no type
    """A client for `address`; thread-safe, it connects by itself."""
    match address.kind:
        case "cluster":
            return _cluster(address)
        case "sentinel":
            return _primary(address)
        case _:
            return _single(address)


def _single(address: Address) -> Redis:
    options = _options(address) | {"db": address.db, "retry": Retry(NoBackoff(), 0)}
    if address.socket_path:
        return Redis(unix_socket_path=address.socket_path, **options)
    host, port = address.hosts[0]
    return Redis(host=host, port=port, **options)


def _primary(address: Address) -> Any:  # noqa: ANN401 - as above
    """The primary that Sentinel names; it is asked again whenever a connection is made."""
    options = _options(address) | {"retry": Retry(NoBackoff(), 0)}
    sentinel_options = options | _login(address.sentinel_user)
    for name in {"username", "password"} - set(_login(address.sentinel_user)):
        sentinel_options.pop(name, None)
    sentinel = Sentinel(address.hosts, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
    return sentinel.master_for(address.service, **options, db=address.db)  # type: ignore[no-untyped-call]


def _cluster(address: Address) -> RedisCluster:
    """Shards whose node is down fail, the others answer."""
    client = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],  # type: ignore[no-untyped-call]
        require_full_coverage=False,
        retry=Retry(NoBackoff(), 0),
        **_options(address),
    )
    client.RedisClusterRequestTTL = _REDIRECTIONS
    return client


def _options(address: Address) -> dict[str, Any]:
    return {
        "socket_connect_timeout": address.connect_timeout_s,
        "socket_timeout": address.timeout_s,
        "socket_read_size": _READ_BYTES,
        "protocol": 2,
        "ssl": address.tls,
        **address.tls_options,
        **_login(address.user),
    }


def _login(user: Credentials) -> dict[str, str]:
    given = {"username": user.username, "password": user.password}
    return {name: value for name, value in given.items() if value is not None}
