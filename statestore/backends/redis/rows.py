"""Between entries and the fields of a Redis hash. Pure.

Numbers are text as Python writes them, so a float comes back with every bit; labels are msgpack;
what is absent is empty. `FIELDS` is the order in which scripts return an entry.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgpack  # type: ignore[import-untyped]

from statestore.backends.fields import (
    check_count,
    check_labels,
    check_memo,
    memo_of,
    touched,
)
from statestore.entry import Change, Departed, Entry, Role, Status
from statestore.errors import InputError
from statestore.keys import StateKey

log = logging.getLogger(__name__)

FIELDS: Final = (
    "digest",
    "n_tokens",
    "namespace",
    "fingerprint",
    "token_digest",
    "schema_id",
    "role",
    "blob",
    "blob_bytes",
    "state_bytes",
    "has_output",
    "cost_s",
    "created_at",
    "used_at",
    "hits",
    "score",
    "pinned",
    "expires_at",
    "status",
    "reason",
    "model",
    "labels",
    "ancestor_tokens",
    "memo",
)

Value: TypeAlias = bytes | str | int


def to_fields(entry: Entry) -> dict[str, Value]:
    """The hash of `entry`. Raises `InputError` for what it cannot hold."""
    check_memo(entry.memo)
    return {
        "digest": entry.key.digest,
        "n_tokens": entry.key.n_tokens,
        "namespace": text(entry.namespace, "namespace"),
        "fingerprint": entry.fingerprint,
        "token_digest": entry.token_digest,
        "schema_id": text(entry.schema_id, "schema_id"),
        "role": entry.role.value,
        "blob": _blob(entry),
        "blob_bytes": entry.blob_bytes,
        "state_bytes": entry.state_bytes,
        "has_output": int(entry.has_output),
        "cost_s": number(entry.cost_s, "cost_s"),
        "created_at": number(entry.created_at, "created_at"),
        "used_at": number(entry.used_at, "used_at"),
        "hits": entry.hits,
        "score": number(entry.score, "score"),
        "pinned": int(entry.pinned),
        "expires_at": expiry(entry.expires_at),
        "status": entry.status.value,
        "reason": text(entry.reason, "reason"),
        "model": text(entry.model, "model"),
        "labels": pack_labels(entry.labels),
        "ancestor_tokens": check_count(entry.ancestor_tokens, "ancestor_tokens"),
        "memo": entry.memo,
    }


def to_entries(rows: Sequence[Sequence[Any]]) -> list[Entry]:
    """The entries of those `rows` that are sound."""
    found = (to_entry(row) for row in rows)
    return [entry for entry in found if entry is not None]


def to_entry(values: Sequence[Any]) -> Entry | None:
    """The entry whose fields, in the order of `FIELDS`, are `values`; ``None``, and a line in the
    log, where none can have written such fields.
    """
    try:
        return _entry(values)
    except (AttributeError, TypeError, ValueError, msgpack.UnpackException) as error:
        where = (values[0] or b"").hex()
        log.warning("the entry of digest %s is damaged and passed over: %s", where, error)
        return None


def _entry(values: Sequence[Any]) -> Entry:
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
    ) = values
    size = int(blob_bytes)
    if size < 0:
        raise ValueError(f"blob_bytes is {size}")
    return Entry(
        key=StateKey(digest, int(n_tokens)),
        namespace=namespace.decode(),
        fingerprint=fingerprint,
        token_digest=token_digest,
        schema_id=schema_id.decode(),
        role=Role(role.decode()),
        blob=blob.decode(),
        blob_bytes=size,
        state_bytes=int(state_bytes),
        has_output=has_output == b"1",
        cost_s=float(cost_s),
        created_at=float(created_at),
        used_at=float(used_at),
        hits=int(hits),
        score=float(score),
        pinned=pinned == b"1",
        expires_at=float(expires_at) if expires_at else None,
        status=Status(status.decode()),
        reason=reason.decode(),
        model=model.decode(),
        labels=_labels(labels),
        ancestor_tokens=int(ancestor_tokens or 0),  # absent in entries of 0.1
        memo=memo_of(memo or ""),  # and this too
    )


def _labels(packed: bytes) -> dict[str, str]:
    labels = msgpack.unpackb(packed)
    if not isinstance(labels, dict):
        raise TypeError(f"{labels!r} are no labels")
    return labels


def to_departed(key: StateKey, kept: bytes | None) -> Departed | None:
    """What is remembered of `key`: ``<n_tokens> <when> <reason>``; ``None`` if nothing is."""
    if kept is None:
        return None
    n_tokens, at, reason = kept.split(b" ", 2)
    return Departed(key, reason.decode(), float(at)) if int(n_tokens) == key.n_tokens else None


def text(value: str, field: str) -> str:
    """`value`, if any catalog can hold it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        pass
    else:
        if "\x00" not in value:
            return value
    raise InputError(f"entry field {field}: {value!r} is not text that a catalog can hold")


def number(value: float, field: str) -> str:
    """`value` as text that reads back with every bit."""
    if math.isnan(value):
        raise InputError(f"entry field {field} is not a number")
    return repr(float(value))


def expiry(at: float | None) -> str:
    """A moment as text; empty for never."""
    return "" if at is None or at == math.inf else number(at, "expires_at")


def pack_labels(value: Mapping[str, str]) -> bytes:
    """Labels as msgpack. Raises `InputError` as `check_labels`."""
    check_labels(value)
    packed: bytes = msgpack.packb(dict(value))
    return packed


def changes(change: Change) -> dict[str, Value]:
    """The fields that a change names. Raises `InputError` for what they cannot hold."""
    spelt: dict[str, Callable[[Any], Value]] = {
        "pinned": int,
        "expires_at": expiry,
        "labels": pack_labels,
        "status": lambda status: status.value,
        "reason": lambda reason: text(reason, "reason"),
    }
    return {name: spelt[name](value) for name, value in change.given().items()}


def touch_fields(
    now: float, score: float, memo: str | None, expires_at: float | None
) -> dict[str, Value]:
    """The fields that a touch sets, but for its count. Raises `InputError` as `touched`."""
    given = touched(now, score, memo, expires_at)
    spelt: dict[str, Callable[[Any], Value]] = {"memo": str, "expires_at": expiry}
    return {
        name: spelt[name](value) if name in spelt else number(value, name)
        for name, value in given.items()
    }


def _blob(entry: Entry) -> str:
    if not entry.blob.startswith(entry.key.hex):
        raise InputError(f"entry {entry.key}: its blob's name {entry.blob!r} begins with no digest")
    return text(entry.blob, "blob")
