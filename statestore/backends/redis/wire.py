"""The quick way to read from one server: few steps between a question and its answer.

redis-py makes and logs in a connection; from then on this talks over its socket. A client that does
more for each command takes 0.3 ms where the processor's caches hold something else by then, and
receives a string of megabytes three times: from the system, into a reply that grows, and from that
into the caller's buffer. Here the system writes into the buffer.

Only for questions: a wire that was idle may have been cut, and then the question is asked again. A
reply that is out of the ordinary is not looked into: the wire hangs up, and the caller asks by the
client, which has a name for everything.
"""

from __future__ import annotations

import math
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from statestore.backends.base import Follower, NotAtHandError
from statestore.backends.redis.shard import Command

T = TypeVar("T")

KEPT: Final = 16  # idle wires of a server

_READ_BYTES: Final = 64 << 10
_PEEK_BYTES: Final = 32  # a string's length, which comes before it, and little else
_LENGTH_DIGITS: Final = 20
IN_FLIGHT: Final = 4  # strings asked for and not yet here: neither side holds a blob twice

_END: Final = b"\r\n"


class OddReplyError(Exception):
    """An error, or something that was not asked for; ask by the client."""


class Wire:
    """One connection. For one thread at a time; whatever it raises, it is of no use any more.

    Args:
        pool: lends the connection.
    """

    def __init__(self, pool: Any) -> None:  # noqa: ANN401 - redis-py's pools share no type
        self._pool = pool
        self._connection = pool.get_connection()
        self._socket: socket.socket = self._connection._sock  # noqa: SLF001 - it shows it nowhere
        self._patience_s: float = self._connection.socket_timeout  # of one send or receive
        self.until = math.inf  # by `time.monotonic`, the end of all patience
        self._arrivals = select.poll()
        self._arrivals.register(self._socket, select.POLLIN)
        self._follower: Follower | None = None
        self._reader = hiredis.Reader()
        self._ahead = b""  # received, and not yet looked at

    def ask(self, command: Command) -> Any:  # noqa: ANN401 - a reply
        """The reply, an error included. Raises ``OSError``."""
        self._limit()
        self._socket.sendall(packed(command))
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._receive(_READ_BYTES))
        return reply

    def gather(
        self, commands: Sequence[Command], buffer: memoryview, follower: Follower | None = None
    ) -> list[int]:
        """Put the strings that are the replies into `buffer`, one behind the other; their lengths.

        `follower` works whenever nothing is there to receive. Raises `OddReplyError` where they do
        not fit, too; ``OSError``.
        """
        self._follower = follower
        if follower is not None:
            follower.begin(buffer)
        came = 0
        lengths: list[int] = []
        self._send(commands[:IN_FLIGHT])
        for place in range(IN_FLIGHT, len(commands) + IN_FLIGHT):
            lengths.append(self._string(buffer, came))
            came += lengths[-1]
            self._send(commands[place : place + 1])
        self._follower = None
        return lengths

    def close(self) -> None:
        """Hang up."""
        self._connection.disconnect()
        self._pool.release(self._connection)

    def _send(self, commands: Sequence[Command]) -> None:
        if commands:
            self._limit()
            self._socket.sendall(b"".join(map(packed, commands)))

    def _string(self, buffer: memoryview, start: int) -> int:
        """Receive one string into `buffer`, from `start` on; its length."""
        room = buffer[start:]
        while _END not in self._ahead:
            if len(self._ahead) > _LENGTH_DIGITS:
                raise OddReplyError
            self._await(start)
            self._ahead += self._receive(_PEEK_BYTES)
        head, _, self._ahead = self._ahead.partition(_END)
        if head[:1] != b"$" or not head[1:].isdigit() or int(head[1:]) > len(room):
            raise OddReplyError
        length = int(head[1:])
        got = min(length, len(self._ahead))
        room[:got], self._ahead = self._ahead[:got], self._ahead[got:]
        while got < length:
            self._await(start + got)
            count = self._socket.recv_into(room[got:length])
            if not count:
                raise ConnectionResetError("the server hung up")
            got += count
        while len(self._ahead) < len(_END):
            self._ahead += self._receive(_PEEK_BYTES)
        self._ahead = self._ahead[len(_END) :]
        return length

    def _await(self, came: int) -> None:
        """Before bytes are received: use the time until the next ones are there."""
        follower = self._follower
        if follower is not None:
            follower.came(came)
            while not self._arrivals.poll(0) and follower.spare():
                pass
        self._limit()

    def _limit(self) -> None:
        """Let the next step take what time is left."""
        left_s = self.until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(min(left_s, self._patience_s))

    def _receive(self, most: int) -> bytes:
        self._limit()
        data = self._socket.recv(most)
        if not data:
            raise ConnectionResetError("the server hung up")
        return data


class Wires:
    """The wires to one server. Safe to use from several threads; not across a fork: make anew.

    Args:
        pool: lends the connections.
    """

    def __init__(self, pool: Any) -> None:  # noqa: ANN401 - redis-py's pools share no type
        self._pool = pool
        self._idle: list[Wire] = []

    def use(self, question: Callable[[Wire], T], until: float | None = None) -> T:
        """What `question` gets from a wire. Raises ``RedisError``, and what it raises itself.

        With `until`, from one that is connected and by that moment; else `NotAtHandError`.
        """
        idle = self._take()
        if idle is not None:
            idle.until = math.inf if until is None else until
            with suppress(ConnectionError):  # cut while nobody looked, and the others with it
                return self._use(idle, question)
            self.clear()
        if until is not None:
            raise NotAtHandError
        try:
            return self._use(Wire(self._pool), question)
        except ConnectionError as error:
            raise RedisConnectionError(f"Connection lost: {error}") from error

    def clear(self) -> None:
        """Hang up all that are idle."""
        while (wire := self._take()) is not None:
            wire.close()

    def _take(self) -> Wire | None:
        with suppress(IndexError):
            return self._idle.pop()
        return None

    def _use(self, wire: Wire, question: Callable[[Wire], T]) -> T:
        try:
            answer = question(wire)
        except TimeoutError as error:
            wire.close()
            raise RedisTimeoutError("Timeout: no answer") from error
        except BaseException:
            wire.close()
            raise
        if len(self._idle) < KEPT:
            self._idle.append(wire)
        else:
            wire.close()
        return answer


def packed(command: Command) -> bytes:
    """A command as it is sent."""
    pieces = [b"*%d\r\n" % len(command)]
    for piece in command:
        sent = piece if isinstance(piece, bytes) else str(piece).encode()
        pieces += (b"$%d\r\n" % len(sent), sent, _END)
    return b"".join(pieces)
