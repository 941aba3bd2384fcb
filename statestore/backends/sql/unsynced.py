"""What a server's disk is not waited for.

A server tells that something is written before its disk has it, where a statement's RETURNING says
so: when it crashes, what it was told in the last half second (thrice its ``wal_writer_delay``) may
be gone, as a file store's newest commits are after a power cut. So it is said of what is computed
again, or made again by those who go on: a state's entry (then its blob is an orphan, and who asks
meets a miss), a hit's note, a lease, a sighting. What a person does, a durable put, a named or
pinned entry and a removal wait for the disk.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Delete, Update, func
from sqlalchemy.sql.functions import FunctionElement

#: On PostgreSQL, in a statement's RETURNING. Of its transaction alone: a pooler hands a session's
#: settings on to others.
UNSYNCED: Final[FunctionElement[Any]] = func.set_config("synchronous_commit", "off", True)


def unsynced(connection: Connection, statement: Update | Delete) -> Any:  # noqa: ANN401 - SQLAlchemy's, of two kinds
    """`statement`, whose transaction does not wait for the disk where `connection` leads to."""
    return statement.returning(UNSYNCED) if _is_server(connection) else statement


def _is_server(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"
