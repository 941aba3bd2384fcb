"""A new entry let into a server's catalog by one statement: a round trip where a transaction of
single ones takes six.

Nearly every put is of a key that nobody has. Where it is there after all, whatever it is worth,
nothing happens, and `catalog.admit` decides.

The server's disk is not waited for (`unsynced`), but where the put is durable, and for what is
kept for its own sake: a named or a pinned entry.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

from statestore.backends.sql import totals
from statestore.backends.sql.rows import to_row
from statestore.entry import Entry, Role
from statestore.tables import SHARDS, entries

_COLUMNS: Final = [column.name for column in entries.c]

# Each part reads the one before it: rows are locked in the order entries, departed, totals.
_ADMIT: Final = text(
    "WITH admitted AS ("  # noqa: S608 - constants
    f" INSERT INTO entries ({', '.join(_COLUMNS)})"
    f" VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
    " ON CONFLICT (digest) DO NOTHING RETURNING digest"
    "), back AS ("
    " DELETE FROM departed WHERE digest IN (SELECT digest FROM admitted) RETURNING digest"
    f") INSERT INTO namespace_totals AS sums (namespace, shard, {', '.join(totals.SUMS)})"
    " SELECT CAST(:namespace AS text), CAST(:shard AS smallint),"
    f" {', '.join(f'CAST(:sum_{name} AS bigint)' for name in totals.SUMS)}"
    " FROM admitted WHERE (SELECT count(*) FROM back) >= 0"
    " ON CONFLICT (namespace, shard) DO UPDATE SET"
    f" {', '.join(f'{name} = sums.{name} + excluded.{name}' for name in totals.SUMS)}"
    " RETURNING CASE WHEN CAST(:lasting AS boolean) THEN NULL"
    " ELSE set_config('synchronous_commit', 'off', true) END"
)


def admit_new(connection: Connection, entry: Entry, *, durable: bool) -> bool:
    """Insert `entry` where there is none of its digest; ``False``: there is one, and it stays.

    In no transaction but the statement's own.
    """
    sums = {f"sum_{name}": amount for name, amount in totals.parts(entry).items()}
    given = {
        **to_row(entry),
        **sums,
        "shard": entry.key.digest[0] % SHARDS,
        "lasting": durable or entry.pinned or entry.role is Role.NAMED,
    }
    return connection.execute(_ADMIT, given).first() is not None
