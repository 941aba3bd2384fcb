"""Entries of the catalog at random: the rows from a random digest on, and from the first one where
there are no more. A digest says nothing of what it stands for, so neighbours are as good as drawn.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Select, false, func, select

from statestore.backends.fields import memo_of
from statestore.backends.sql.rows import DIGEST_BYTES, moment, whole
from statestore.entry import Candidate, Role, Status
from statestore.keys import StateKey
from statestore.tables import entries

_COLUMNS: Final = [
    entries.c[name]
    for name in (
        "digest",
        "n_tokens",
        "role",
        "blob_bytes",
        "used_at",
        "hits",
        "ancestor_tokens",
        "memo",
    )
]


def sample(connection: Connection, namespace: str | None, count: int) -> list[Candidate]:
    """Up to `count` unpinned, ready entries (of `namespace`) at random."""
    pivot = secrets.token_bytes(DIGEST_BYTES)
    of = _unpinned(namespace).limit(count)
    rows = connection.execute(of.where(entries.c.digest >= pivot)).all()
    if len(rows) < count:
        rest = of.where(entries.c.digest < pivot).limit(count - len(rows))
        rows = [*rows, *connection.execute(rest)]
    return [_candidate(row) for row in rows]


def _unpinned(namespace: str | None) -> Select[Any]:
    # COALESCE keeps planners from the indexes of what is not pinned: the digests' is to be read.
    ready = select(*_COLUMNS).where(func.coalesce(entries.c.pinned, false()) == false())
    ready = ready.where(func.coalesce(entries.c.status, "") != Status.QUARANTINED.value)
    if namespace is not None:
        return ready.where(entries.c.namespace == namespace).order_by(
            entries.c.namespace, entries.c.digest
        )
    return ready.order_by(entries.c.digest)


def _candidate(row: Sequence[Any]) -> Candidate:
    """What a row says; one that is damaged is ranked too, so that it goes some day."""
    digest, n_tokens, role, blob_bytes, used_at, hits, ancestor_tokens, memo = row
    return Candidate(
        key=StateKey(bytes(digest), whole(n_tokens)),
        role=Role(role) if role in _ROLES else Role.PROMPT,
        blob_bytes=whole(blob_bytes),
        used_at=moment(used_at),
        hits=whole(hits),
        ancestor_tokens=whole(ancestor_tokens),
        memo=memo_of(memo),
    )


_ROLES: Final = frozenset(Role)
