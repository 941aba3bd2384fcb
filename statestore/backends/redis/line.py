"""One connection that listens to one channel; redis-py's own class for it has more than is needed
here, and locks that a fork could leave shut.
"""

from __future__ import annotations

from typing import Any, Final

from redis.exceptions import RedisError

from statestore.errors import UnavailableError

_LOST: Final = (RedisError, OSError)


class Line:
    """What is published from now on. For one thread at a time.

    Args:
        pool: lends the connection.
        channel: what to hear.
    """

    def __init__(self, pool: Any, channel: str) -> None:  # noqa: ANN401 - redis-py's pools share no type
        self._pool = pool
        self._connection = pool.get_connection()
        try:
            self._connection.send_command("SUBSCRIBE", channel)
            self._connection.read_response()
        except BaseException:
            self.close()
            raise

    def read(self, seconds: float) -> list[str]:
        """The messages of the next `seconds`, as soon as there is one.

        Raises:
            UnavailableError: the connection broke.
        """
        messages = []
        try:
            while self._connection.can_read(timeout=seconds):
                _, _, message = self._connection.read_response()
                messages.append(message.decode(errors="replace"))
                seconds = 0
        except _LOST as error:
            raise UnavailableError(f"the line to Redis broke: {error}") from error
        return messages

    def close(self) -> None:
        """Hang up."""
        self._connection.disconnect()
        self._pool.release(self._connection)
