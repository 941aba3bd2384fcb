"""Many commands to a Cluster in one round trip: every node is sent its share before the first reply
is read.

redis-py's own pipeline for a Cluster sends what failed again, command by command: with a node that
does not answer, a timeout for each of them. Here a node that fails costs one timeout and ends the
call; for a new map of the slots it is asked last, since its silence would cost another timeout.
What a node sends elsewhere (its slots moved) goes the way of redirections, one by one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, Self

from redis import RedisCluster
from redis import exceptions as redis_errors

from statestore.backends.redis.shard import Command

_ELSEWHERE: Final = (redis_errors.AskError, redis_errors.TryAgainError)  # MOVED is an AskError


def run(client: RedisCluster, commands: Sequence[Command], *, moving_ok: bool) -> list[Any]:
    """The replies, in order; an error that is a reply is one of them.

    With `moving_ok` nobody waits for a slot that is just moved.

    Raises:
        RedisError: a node cannot be reached, or is too slow.
    """
    shares: dict[Any, list[int]] = defaultdict(list)
    for place, command in enumerate(commands):
        node = client.get_node_from_key(_key(command))  # type: ignore[no-untyped-call]
        shares[node].append(place)
    replies = _exchange(client, commands, shares)
    for place, reply in replies.items():
        if moving_ok and isinstance(reply, redis_errors.TryAgainError):
            continue
        if isinstance(reply, _ELSEWHERE):
            replies[place] = _redirected(client, commands[place])
    return [replies[place] for place in range(len(commands))]


def _redirected(client: RedisCluster, command: Command) -> Any:  # noqa: ANN401 - a reply
    try:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]
    except (redis_errors.ResponseError, redis_errors.ClusterError) as error:  # to and fro
        return error


def _exchange(
    client: RedisCluster, commands: Sequence[Command], shares: dict[Any, list[int]]
) -> dict[int, Any]:
    """Replies, and errors that are replies, by place. After a failure the map is made anew."""
    replies: dict[int, Any] = {}
    open_to: dict[Any, _Borrowed] = {}
    node: Any = None  # that is just being asked
    try:
        with ExitStack() as stack:
            for node in shares:
                pool = client.get_redis_connection(node).connection_pool
                open_to[node] = stack.enter_context(_Borrowed(pool))
            for node, places in shares.items():
                open_to[node].send([commands[place] for place in places])
            for node, places in shares.items():
                replies.update(zip(places, open_to[node].receive(), strict=True))
    except (redis_errors.ConnectionError, redis_errors.TimeoutError):
        # a replica may stand in for the node by now
        client.nodes_manager.initialize(last_failed_node_name=node.name)
        raise
    return replies


class _Borrowed:
    """A connection of a pool; given back clean, or closed if replies are still to come."""

    def __init__(self, pool: Any) -> None:  # noqa: ANN401 - redis-py's pools share no type
        self._pool = pool
        self._connection = pool.get_connection()
        self._awaited = 0

    def send(self, commands: list[Command]) -> None:
        """Send without waiting."""
        self._awaited = len(commands)
        self._connection.send_packed_command(self._connection.pack_commands(commands))

    def receive(self) -> list[Any]:
        """The replies; an error that is a reply is one of them."""
        replies: list[Any] = []
        while self._awaited:
            try:
                replies.append(self._connection.read_response())
            except redis_errors.ResponseError as error:
                replies.append(error)
            self._awaited -= 1
        return replies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._awaited:
            self._connection.disconnect()
        self._pool.release(self._connection)


def _key(command: Command) -> str:
    key: str = command[3] if command[0] in ("EVAL", "EVALSHA") else command[1]
    return key
