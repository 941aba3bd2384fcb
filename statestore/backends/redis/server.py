"""The connection to Redis: commands in, replies or the storage layer's errors out.

One server, the primary behind Sentinel and a Cluster look alike from here: `run` sends commands in
one round trip (in a Cluster, one to every node that is concerned, all sent before the first reply
is read; one more where a server meets a script for the first time). Nothing is connected before the
first command, and nothing is tried twice beyond what a Cluster's redirections ask for: a dead
server costs its timeout once. Safe to use from several threads; a forked child makes connections of
its own.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Final

from redis import RedisCluster
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.sentinel import MasterNotFoundError

from statestore.backends.base import Follower, NotAtHandError
from statestore.backends.redis import fanout
from statestore.backends.redis.address import Address
from statestore.backends.redis.connect import new_client
from statestore.backends.redis.line import Line
from statestore.backends.redis.shard import Command
from statestore.backends.redis.wire import IN_FLIGHT, OddReplyError, Wires
from statestore.errors import BackendError, BusyError, ClosedError, FullError, UnavailableError

_SCAN_KEYS: Final = 1000  # looked at in one step
_IN_A_SCRIPT: Final = "The user executing the script can't"  # run this, or reach that key
_NO_LOGIN: Final = "unauthenticated"  # what it says to a large command before a password
#: What a node says in a script, and redis-py in the end, of a slot that is between two nodes.
_BETWEEN: Final = ("non local key in a cluster node", "rehashing of the slot", "TTL exhausted")
_RIGHTS: Final = "+@read +@write +@scripting +@pubsub +@connection +cluster"


class Server:
    """Runs commands at an address; the first one connects."""

    def __init__(self, address: Address) -> None:
        self.place = address.url
        self._address = address
        self._closed = False
        self._begin()
        _servers.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._client: Any | None = None
        self._wires: Wires | None = None
        self._inside = 0

    def run(self, commands: Sequence[Command], *, moving_ok: bool = False) -> list[Any]:
        """The replies, in order.

        With `moving_ok` a slot that is just moved to another node of a Cluster replies ``None``.

        Raises:
            UnavailableError: the server cannot be reached, is too slow, or refuses a command.
            BusyError: a slot is just moved.
            FullError: it has no memory left.
            ClosedError: `close` was called.
        """
        with self._using() as client:  # a closed server says so even where nothing is asked
            asked = [_by_digest(command) for command in commands]
            replies = self._exchange(client, asked, moving_ok)
            new = [place for place, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if new:
                again = self._exchange(client, [commands[place] for place in new], moving_ok)
                replies = _merged(replies, new, again)
            for place, reply in enumerate(replies):
                if moving_ok and _moves(reply):
                    replies[place] = None
                elif isinstance(reply, Exception):
                    raise reply
            return replies

    def _exchange(self, client: Any, commands: Sequence[Command], moving_ok: bool) -> list[Any]:  # noqa: ANN401 - redis-py's clients share no type
        """The replies, in order; an error that is a reply is one of them."""
        if len(commands) == 1:
            try:
                return [client.execute_command(*commands[0])]
            except (ResponseError, ClusterError) as error:
                return [error]
        if self._address.kind == "cluster":
            return fanout.run(client, commands, moving_ok=moving_ok)
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies

    def ask(self, command: Command, until: float | None = None) -> Any:  # noqa: ANN401 - a reply
        """The reply to a command that only reads, with as little as possible around it.

        Raises as `run`; with `until`, a moment by `time.monotonic`, it is kept, and
        `NotAtHandError` says that this goes only without.
        """
        asked = _by_digest(command)
        with self._using() as client:
            if wires := self._wires_of(client):
                reply = wires.use(lambda wire: wire.ask(asked), until)
                if not isinstance(reply, Exception):
                    return reply
        if until is not None:
            raise NotAtHandError
        return self.run([command])[0]

    def gather(
        self,
        commands: Sequence[Command],
        buffer: memoryview,
        until: float | None = None,
        follower: Follower | None = None,
    ) -> list[int]:
        """Put the strings that are the replies into `buffer`, one behind the other, those that are
        cut short by its end included; their lengths. Raises as `ask`.

        `follower` is told how far it has come, over a wire; by the client it has all at once.
        """
        with self._using() as client, suppress(OddReplyError):
            if wires := self._wires_of(client):
                return wires.use(lambda wire: wire.gather(commands, buffer, follower), until)
        if until is not None:
            raise NotAtHandError
        if follower is not None:
            follower.begin(buffer)  # what it was told of is written over
        lengths: list[int] = []
        for first in range(0, len(commands), IN_FLIGHT):
            for reply in self.run(commands[first : first + IN_FLIGHT]):
                part = reply[: len(buffer)]
                buffer[: len(part)] = part
                buffer = buffer[len(part) :]
                lengths.append(len(part))
        return lengths

    def scan(self, pattern: str) -> Iterator[str]:
        """Every key that matches, at every primary; some may come twice. Raises as `run`."""
        with self._using() as client:
            for key in client.scan_iter(match=pattern, count=_SCAN_KEYS):
                yield key.decode(errors="replace")

    def members(self, name: str) -> Iterator[bytes]:
        """Every member of a sorted set, at least once; raises as `run`."""
        with self._using() as client:
            for member, _ in client.zscan_iter(name, count=_SCAN_KEYS):
                yield member

    def listen(self, channel: str) -> Line:
        """A connection of its own that hears what is published on `channel`. Raises as `run`."""
        with self._using() as client:
            return Line(_pool(client), channel)

    def close(self) -> None:
        """Calls that are running end well; a second call does nothing."""
        with self._lock:
            self._closed = True
            idle = self._inside == 0
        if idle:
            self._disconnect()

    @contextmanager
    def _using(self) -> Iterator[Any]:
        with self._lock:
            if self._closed:
                raise ClosedError(f"{self.place} was closed")
            self._inside += 1
        try:
            self._connect()
            yield self._client
        except (RedisError, RedisClusterException, OSError) as error:
            raise self._translated(error) from error
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            last = self._closed and self._inside == 0
        if last:
            self._disconnect()

    def _connect(self) -> None:
        if self._client is None:
            self._adopt(new_client(self._address))  # a Cluster's client waits for a node: no lock

    def _adopt(self, client: Any) -> None:  # noqa: ANN401 - redis-py's clients share no type
        with self._lock:
            adopted = self._client is None
            if adopted:
                self._client = client
        if not adopted:
            client.close()

    def _wires_of(self, client: Any) -> Wires | None:  # noqa: ANN401 - as above
        """The quick way; ``None`` over TLS, and in a Cluster, which sends questions on."""
        if self._address.tls or self._address.kind == "cluster":
            return None
        with self._lock:
            if self._wires is None:
                self._wires = Wires(client.connection_pool)
            return self._wires

    def _disconnect(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            wires, self._wires = self._wires, None
        if wires is not None:
            wires.clear()
        if client is not None:
            client.close()

    def leave_behind(self) -> None:
        """In a forked child. Collecting a client takes locks that a thread may have held."""
        _inherited.append((self._client, self._wires))
        self._begin()

    def _forget_idle_connections(self) -> None:
        if self._wires is not None:
            self._wires.clear()
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:
            pool.disconnect(inuse_connections=False)

    def _translated(self, error: Exception) -> BackendError:
        if "command not allowed when used memory" in str(error):
            return FullError(f"{self.place}: no memory left: raise maxmemory, or delete states")
        if _moves(error):
            return BusyError(f"{self.place}: a slot is moving from node to node")
        if isinstance(error, ReadOnlyError):
            self._forget_idle_connections()  # the name may lead to another server by now
        said = (
            str(error).partition(" : <")[0].rstrip(".")
        )  # Sentinel's client goes on with its innards
        return UnavailableError(f"{self.place}: {said}{self._remedy(error)}")

    def _remedy(self, error: Exception) -> str:
        if isinstance(error, NoPermissionError) or _IN_A_SCRIPT in str(error):
            mine = f"{self._address.prefix}:*"
            return f"; this user needs ~{mine} &{mine} {_RIGHTS}"
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return "; ssl_ca_certs=/path.pem names who signed it, and the URL a host that it is of"
        if isinstance(error, MovedError):
            return "; this is a node of a Cluster: write redis+cluster://"
        if isinstance(error, AuthenticationError) or _NO_LOGIN in str(error):
            return "; check the user and the password in the URL"
        if isinstance(error, ReadOnlyError):
            return "; this is a replica: name the primary, or use redis+sentinel://"
        if isinstance(error, BusyLoadingError):
            return "; it is starting"
        if isinstance(error, MasterNotFoundError):
            return "; does Sentinel answer there, by that name, and to sentinel_password=?"
        if isinstance(error, RedisConnectionError | RedisClusterException):
            return "; is the server running there, and is the URL right?"
        return ""


def _moves(reply: object) -> bool:
    """Whether a slot is on its way from node to node: both are well, and it will have come soon."""
    if isinstance(reply, AskError | TryAgainError):
        return not isinstance(reply, MovedError)
    return isinstance(reply, Exception) and any(words in str(reply) for words in _BETWEEN)


def _merged(replies: list[Any], places: list[int], others: list[Any]) -> list[Any]:
    """`replies`, with the `others` at these places."""
    return list({**dict(enumerate(replies)), **dict(zip(places, others, strict=True))}.values())


def _by_digest(command: Command) -> Command:
    """A script by its digest: a tenth of the bytes. A server that has not met it says so."""
    return ("EVALSHA", _digest(command[1]), *command[2:]) if command[0] == "EVAL" else command


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _pool(client: Any) -> Any:  # noqa: ANN401 - redis-py's pools share no type
    """The connections of the server; in a Cluster of one node, each of which hears everything."""
    if isinstance(client, RedisCluster):
        node = client.get_random_node()  # type: ignore[no-untyped-call]
        return client.get_redis_connection(node).connection_pool
    return client.connection_pool


_servers: weakref.WeakSet[Server] = weakref.WeakSet()
_inherited: list[object] = []


def _leave_all_behind() -> None:
    for server in list(_servers):
        server.leave_behind()


os.register_at_fork(after_in_child=_leave_all_behind)
