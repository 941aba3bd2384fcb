"""The tally of lookups in the catalog: one row for each tier, namespace and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, select, text

from statestore.backends.fields import check_text
from statestore.backends.lookups import ROWS, LookupSums
from statestore.backends.sql.database import Database
from statestore.tables import lookups

# It comes aside from requests; another process that holds the write lock is not waited for.
_PATIENCE_S: Final = 0.25

_WHOSE: Final = ("tier", "namespace", "fingerprint")
_SUMS: Final = ("lookups", "found", "tokens_asked", "tokens_found", "seconds_found")

_ADD: Final = text(
    f"INSERT INTO lookups ({', '.join((*_WHOSE, *_SUMS, 'since'))}) "  # noqa: S608 - constants
    f"VALUES ({', '.join(f':{name}' for name in (*_WHOSE, *_SUMS, 'since'))}) "
    f"ON CONFLICT ({', '.join(_WHOSE)}) DO UPDATE SET "
    + ", ".join(f"{name} = lookups.{name} + excluded.{name}" for name in _SUMS)
)

_KNOWN: Final = select(*(lookups.c[name] for name in _WHOSE)).where(
    lookups.c.fingerprint.in_(bindparam("fingerprints", expanding=True))
)


class SqlLookups:
    """As the port says.

    Args:
        database: a catalog at head.
        rows: that are kept.
    """

    lasting: Final = True

    def __init__(self, database: Database, rows: int = ROWS) -> None:
        self._database = database
        self._rows = rows

    def add(self, sums: Sequence[LookupSums]) -> None:
        """As the port says; one transaction."""
        for one in sums:
            check_text(one.namespace, "namespace")
        if sums:
            self._database.write(lambda tx: self._add(tx, sums), patience_s=_PATIENCE_S)

    def sums(self, namespace: str | None = None) -> list[LookupSums]:
        """As the port says; one query."""
        wanted = select(lookups)
        if namespace is not None:
            wanted = wanted.where(lookups.c.namespace == namespace)
        return self._database.read(lambda tx: [_of(row) for row in tx.execute(wanted).mappings()])

    def _add(self, connection: Connection, sums: Sequence[LookupSums]) -> None:
        count = connection.scalar(select(func.count()).select_from(lookups)) or 0
        if count + len(sums) > self._rows:
            sums = self._within(connection, sums, self._rows - count)
        # In one order, whoever writes: two that add to the same rows do not wait in a circle.
        for one in sorted(sums, key=lambda one: one.whose):
            connection.execute(_ADD, asdict(one))

    def _within(
        self, connection: Connection, sums: Sequence[LookupSums], left: int
    ) -> list[LookupSums]:
        """`sums`, of which all but `left` new ones are added to rows that are there."""
        digests = {"fingerprints": [one.fingerprint for one in sums]}
        known = {(r.tier, r.namespace, r.fingerprint) for r in connection.execute(_KNOWN, digests)}
        kept: list[LookupSums] = []
        for one in sums:
            new = one.whose not in known
            kept.append(one if not new or left > 0 else one.rest)
            left -= new
        return kept


def _of(row: Any) -> LookupSums:  # noqa: ANN401 - a mapping of columns
    return LookupSums(**{**row, "fingerprint": bytes(row["fingerprint"])})
