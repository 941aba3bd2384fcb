"""A connection to PostgreSQL that hears which leases were released: LISTEN, on one channel.

Through a pooler that shares sessions nothing is heard; who waits there sees a release at the next
look.
"""

from __future__ import annotations

import math
from typing import Any, Final

import psycopg
from sqlalchemy import URL

from statestore.backends.sql.leases import CHANNEL
from statestore.backends.sql.postgres import BoundedConnection
from statestore.errors import UnavailableError

_CONNECT_S: Final = 2  # the least that the driver takes; per address of the host


class PostgresLine:
    """What is told on `CHANNEL` from now on. For one thread at a time.

    Raises:
        UnavailableError: the server cannot be reached.
    """

    def __init__(self, url: URL) -> None:
        _, given = url.get_dialect()().create_connect_args(url)
        settings: dict[str, Any] = {"application_name": "statestore", **given}
        try:
            self._connection = BoundedConnection.connect(
                autocommit=True, **{**settings, "connect_timeout": _CONNECT_S}
            )
            self._connection.answer_s = _CONNECT_S
            self._connection.execute(f"LISTEN {CHANNEL}")
            self._connection.answer_s = math.inf
        except psycopg.Error as error:
            raise UnavailableError(f"no line to the catalog's server: {_line(error)}") from error

    def read(self, seconds: float) -> list[str]:
        """The digests of the next `seconds`, in hex, as soon as there is one.

        Raises:
            UnavailableError: the connection broke.
        """
        try:
            first = [told.payload for told in self._heard(seconds)]
            rest = [told.payload for told in self._heard(0)] if first else []
        except psycopg.Error as error:
            raise UnavailableError(f"the line to the catalog broke: {_line(error)}") from error
        return first + rest

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _heard(self, seconds: float) -> Any:  # noqa: ANN401 - a generator of the driver's notices
        return self._connection.notifies(timeout=seconds, stop_after=1 if seconds else None)


def _line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
