"""What the catalog remembers of entries that are gone: the newest `DEPARTED_ROWS`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select

from statestore.backends.sql.rows import WANTED, digest_at, packed, to_departed
from statestore.entry import Departed
from statestore.keys import StateKey
from statestore.tables import DEPARTED_ROWS, departed

_DEPARTED: Final = select(departed).select_from(
    WANTED.join(departed, departed.c.digest == digest_at(WANTED.c.position))
)


def remembered(connection: Connection, keys: Sequence[StateKey]) -> dict[StateKey, Departed]:
    """What is remembered of `keys`."""
    rows = connection.execute(_DEPARTED, packed(keys)).mappings()
    gone = {known.key: known for known in map(to_departed, rows)}
    return {key: gone[key] for key in keys if key in gone}


def remember(connection: Connection, gone: Sequence[Departed]) -> None:
    """Remember these, instead of the oldest."""
    forget(connection, [known.key.digest for known in gone])
    rows = [
        {
            "digest": known.key.digest,
            "n_tokens": known.key.n_tokens,
            "reason": known.reason,
            "departed_at": known.departed_at,
        }
        for known in gone
    ]
    connection.execute(insert(departed), rows)
    newest = connection.scalar(select(func.max(departed.c.id)))
    assert newest is not None
    # what another transaction is about to forget is left to it: nobody waits
    old = select(departed.c.id).where(departed.c.id <= newest - DEPARTED_ROWS)
    old = old.with_for_update(skip_locked=True)
    connection.execute(delete(departed).where(departed.c.id.in_(old)))


def forget(connection: Connection, digests: Sequence[bytes]) -> None:
    """They are stored again."""
    connection.execute(delete(departed).where(departed.c.digest.in_(digests)))
