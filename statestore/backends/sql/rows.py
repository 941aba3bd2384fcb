"""Between entries and rows of the catalog's tables."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    LargeBinary,
    RowMapping,
    UnaryExpression,
    bindparam,
    func,
    literal,
    select,
)
from sqlalchemy.sql.operators import custom_op

from statestore.backends.fields import check_count, check_labels, check_memo, check_text, memo_of
from statestore.blobs.base import NAME
from statestore.entry import Change, Departed, Entry, EntryFilter, Role, Status
from statestore.errors import InputError
from statestore.keys import StateKey
from statestore.keys.state_key import TOKENS_LIMIT
from statestore.tables import entries

log = logging.getLogger(__name__)

DIGEST_BYTES: Final = 32

_PLUS: Final[custom_op[Any]] = custom_op("+")  # to SQLite: no index for this column

# By value: a look into a dict, where the classes themselves go through calls.
_ROLES: Final = {role.value: role for role in Role}
_STATUSES: Final = {status.value: status for status in Status}
_TRUTHS: Final = (0, 1)

#: The anchor of what lies along no prompt: a named state is not among those whose is not known.
NO_STRETCH: Final = 0


@dataclass(frozen=True, slots=True)
class Holding:
    """What is read of an entry that changes or goes: a row that is damaged elsewhere is no less
    in the way, and goes like any other.
    """

    key: StateKey
    namespace: str
    blob: str
    blob_bytes: int
    state_bytes: int
    status: str
    score: float
    pinned: bool
    expires_at: float | None


#: The columns of a `Holding`.
HOLDING: Final = [
    entries.c[name]
    for name in (
        "digest",
        "n_tokens",
        "namespace",
        "blob",
        "blob_bytes",
        "state_bytes",
        "status",
        "score",
        "pinned",
        "expires_at",
    )
]

# The rows 0, 1, ... up to the number of digests that `packed` gave.
_numbers: Final = select(literal(0).label("position")).cte("wanted", recursive=True)
WANTED: Final[CTE] = _numbers.union_all(
    select(_numbers.c.position + 1).where(_numbers.c.position + 1 < bindparam("count"))
)


def packed(keys: Sequence[StateKey]) -> dict[str, Any]:
    """Parameters for a statement over `WANTED`: two for all keys, so that no limit is met."""
    return {"digests": b"".join(key.digest for key in keys), "count": len(keys)}


def digest_at(position: ColumnElement[int]) -> ColumnElement[bytes]:
    """The digest at `position` of the packed ones."""
    digests = bindparam("digests", type_=LargeBinary)
    return func.substr(digests, position * DIGEST_BYTES + 1, DIGEST_BYTES, type_=LargeBinary)


def to_row(entry: Entry) -> dict[str, Any]:
    """The row of `entry`. Raises `InputError` for what no column can hold."""
    check_memo(entry.memo)
    return {
        "digest": entry.key.digest,
        "n_tokens": entry.key.n_tokens,
        "namespace": check_text(entry.namespace, "namespace"),
        "fingerprint": entry.fingerprint,
        "token_digest": entry.token_digest,
        "schema_id": check_text(entry.schema_id, "schema_id"),
        "role": entry.role.value,
        "blob": check_text(entry.blob, "blob"),
        "blob_bytes": entry.blob_bytes,
        "state_bytes": entry.state_bytes,
        "has_output": entry.has_output,
        "cost_s": number(entry.cost_s, "cost_s"),
        "created_at": number(entry.created_at, "created_at"),
        "used_at": number(entry.used_at, "used_at"),
        "hits": entry.hits,
        "score": number(entry.score, "score"),
        "pinned": entry.pinned,
        "expires_at": expiry(entry.expires_at),
        "status": entry.status.value,
        "reason": check_text(entry.reason, "reason"),
        "model": check_text(entry.model, "model"),
        "labels": labels_text(entry.labels),
        "ancestor_tokens": check_count(entry.ancestor_tokens, "ancestor_tokens"),
        "memo": entry.memo,
        "anchor": NO_STRETCH if entry.role is Role.NAMED else entry.key.anchor,
    }


def to_columns(change: Change) -> dict[str, Any]:
    """The columns that a change names. Raises `InputError` for what they cannot hold."""
    spelt: dict[str, Callable[[Any], Any]] = {
        "pinned": bool,
        "expires_at": expiry,
        "labels": labels_text,
        "status": lambda status: status.value,
        "reason": lambda reason: check_text(reason, "reason"),
    }
    return {name: spelt[name](value) for name, value in change.given().items()}


def to_entry(row: Sequence[Any], asked: StateKey | None = None) -> Entry | None:
    """The entry of a row, in the order of the table's columns; ``None``, and a warning, where none
    can have written such a row. Where its key is the one that was `asked` for, it is that object.
    """
    try:
        return _entry(row, asked)
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError) as error:
        where = bytes(row[0]).hex()
        log.warning("the catalog's row of digest %s is damaged, and passed over: %s", where, error)
        return None


def to_entries(rows: Iterable[Sequence[Any]]) -> list[Entry]:
    """The entries of those `rows` that are sound."""
    found = (to_entry(row) for row in rows)
    return [entry for entry in found if entry is not None]


def to_holding(row: RowMapping) -> Holding:
    """What a row takes up. SQLite keeps any value in any column: what is no number counts as 0, and
    what is no text is spelt as Python does.
    """
    expires_at = row["expires_at"]
    return Holding(
        key=StateKey(bytes(row["digest"]), whole(row["n_tokens"])),
        namespace=str(row["namespace"]),
        blob=str(row["blob"]),
        blob_bytes=whole(row["blob_bytes"]),
        state_bytes=whole(row["state_bytes"]),
        status=str(row["status"]),
        score=moment(row["score"]),
        pinned=row["pinned"] in (1, True),
        expires_at=expires_at if isinstance(expires_at, float) else None,
    )


def moment(value: object) -> float:
    """A column's moment; what is none counts as long ago."""
    return value if isinstance(value, float) and math.isfinite(value) else 0.0


def whole(value: object) -> int:
    """A column's number of tokens or bytes; what is none counts as 0."""
    return value if type(value) is int and 0 <= value < TOKENS_LIMIT else 0


def _entry(row: Sequence[Any], asked: StateKey | None) -> Entry:
    (
        digest,
        n_tokens,
        namespace,
        fingerprint,
        token_digest,
        schema_id,
        role,
        blob,
        blob_bytes,
        state_bytes,
        has_output,
        cost_s,
        created_at,
        used_at,
        hits,
        score,
        pinned,
        expires_at,
        status,
        reason,
        model,
        labels,
        ancestor_tokens,
        memo,
        anchor,
    ) = row
    if has_output not in _TRUTHS or pinned not in _TRUTHS:
        raise ValueError(f"{has_output!r} or {pinned!r} is neither true nor false")
    key = asked
    if key is None or digest != key.digest or n_tokens != key.n_tokens:
        key = StateKey(bytes(digest), n_tokens, anchor if type(anchor) is int else None)
    return Entry(
        key=key,
        namespace=namespace,
        fingerprint=bytes(fingerprint),
        token_digest=bytes(token_digest),
        schema_id=schema_id,
        role=_ROLES[role],
        blob=_blob_name(blob),
        blob_bytes=int(blob_bytes),
        state_bytes=int(state_bytes),
        has_output=bool(has_output),
        cost_s=float(cost_s),
        created_at=float(created_at),
        used_at=float(used_at),
        hits=int(hits),
        score=float(score),
        pinned=bool(pinned),
        expires_at=None if expires_at is None else float(expires_at),
        status=_STATUSES[status],
        reason=reason,
        model=model,
        labels=_labels(labels),
        ancestor_tokens=int(ancestor_tokens),
        memo=memo_of(memo),
    )


def to_departed(row: RowMapping) -> Departed:
    """What is remembered, of a row of ``departed``."""
    key = StateKey(bytes(row["digest"]), row["n_tokens"])
    return Departed(key, row["reason"], row["departed_at"])


def number(value: float, field: str) -> float:
    """`value`, if it is a number: a catalog would take NaN for something else."""
    if math.isnan(value):
        raise InputError(f"entry field {field} is not a number")
    return float(value)


def expiry(at: float | None) -> float | None:
    """A moment as a column holds it: ``None`` is never."""
    return None if at is None or at == math.inf else number(at, "expires_at")


def labels_text(labels: Mapping[str, str]) -> str:
    """Labels as JSON; equal labels give equal text. Raises `InputError` as `check_labels`."""
    check_labels(labels)
    return json.dumps(dict(labels), sort_keys=True)


def conditions(where: EntryFilter, *, walked: bool = False) -> list[ColumnElement[bool]]:
    """`where` as SQL, but for its labels: JSON differs between databases. See `has_labels`.

    `walked` (SQLite): what many entries may have in common leads to no index, so that entries come
    in the order that is asked for and are not sorted anew for each page.
    """
    wanted: list[ColumnElement[bool]] = []
    for name in ("namespace", "model"):
        if getattr(where, name) is not None:
            check_text(getattr(where, name), name)
    for name in ("namespace", "fingerprint", "token_digest", "model", "pinned"):
        value = getattr(where, name)
        if value is not None:
            column: ColumnElement[Any] = entries.c[name]
            if walked and name in ("namespace", "fingerprint", "pinned"):
                column = UnaryExpression(column, operator=_PLUS, type_=column.type)
            wanted.append(column == value)
    if where.role is not None:
        wanted.append(entries.c.role == where.role.value)
    if where.status is not None:
        wanted.append(entries.c.status == where.status.value)
    wanted += _bounds(where)
    if where.key_prefix:
        wanted.append(entries.c.digest.between(*_digest_range(where.key_prefix)))
    return wanted


def _bounds(where: EntryFilter) -> Iterator[ColumnElement[bool]]:
    if where.used_before is not None:
        yield entries.c.used_at < where.used_before
    if where.created_before is not None:
        yield entries.c.created_at < where.created_before
    if where.created_after is not None:
        yield entries.c.created_at >= where.created_after
    if where.at_least_bytes is not None:
        yield entries.c.blob_bytes >= where.at_least_bytes
    if where.at_most_bytes is not None:
        yield entries.c.blob_bytes <= where.at_most_bytes


def has_labels(entry: Entry, where: EntryFilter) -> bool:
    """Whether `entry` carries every label of `where`."""
    return where.labels.items() <= entry.labels.items()


def _blob_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no blob's name")
    return name


def _labels(stored: str) -> dict[str, str]:
    if stored == "{}":
        return {}
    labels = json.loads(stored)
    if not isinstance(labels, dict):
        raise TypeError(f"{stored!r} are no labels")
    return labels


def _digest_range(prefix: str) -> tuple[bytes, bytes]:
    """The first and the last digest that begin with these hex digits."""
    digits = 2 * DIGEST_BYTES
    try:
        return bytes.fromhex(prefix.ljust(digits, "0")), bytes.fromhex(prefix.ljust(digits, "f"))
    except ValueError:
        raise InputError(f"key prefix {prefix!r}: expected hex digits") from None
