"""The tallies of a SQL catalog: one query, which reads every row."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Double, Integer, Row, case, cast, func, select

from statestore.backends.tallies import Tally
from statestore.entry import Status
from statestore.tables import entries


def _count(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _sum(value: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(value), 0)


_HITS: Final = cast(entries.c.hits, Double)  # a product of two counts may not fit a whole number

_COLUMNS: Final = (
    entries.c.namespace,
    entries.c.model,
    entries.c.fingerprint,
    func.count().label("entries"),
    _sum(entries.c.blob_bytes).label("blob_bytes"),
    _sum(entries.c.state_bytes).label("state_bytes"),
    _count(entries.c.status == Status.QUARANTINED.value).label("quarantined"),
    cast(_count(entries.c.pinned), Integer).label("pinned"),
    _count(entries.c.hits > 0).label("used"),
    _sum(entries.c.hits).label("hits"),
    _sum(_HITS * entries.c.n_tokens).label("tokens_saved"),
    _sum(_HITS * entries.c.cost_s).label("seconds_saved"),
)


def tallies(connection: Connection, namespace: str | None) -> list[tuple[bytes, Tally]]:
    """One tally for each namespace, or `namespace` alone, model and fingerprint; with that."""
    groups = (entries.c.namespace, entries.c.model, entries.c.fingerprint)
    statement = select(*_COLUMNS).group_by(*groups)
    if namespace is not None:
        statement = statement.where(entries.c.namespace == namespace)
    return [(bytes(row.fingerprint), _tally(row)) for row in connection.execute(statement)]


def _tally(row: Row[Any]) -> Tally:
    return Tally(
        namespace=str(row.namespace),
        model=str(row.model),
        entries=int(row.entries),
        blob_bytes=int(row.blob_bytes),
        state_bytes=int(row.state_bytes),
        quarantined=int(row.quarantined),
        pinned=int(row.pinned),
        used=int(row.used),
        hits=int(row.hits),
        tokens_saved=round(row.tokens_saved),
        seconds_saved=float(row.seconds_saved),
    )
