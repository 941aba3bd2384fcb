"""Between entries and the fields of a Redis hash. Pure.

Numbers are text as Python writes them, so a float comes back with every bit; labels are msgpack;
what is absent is empty. `FIELDS` is the order in which scripts return an entry.

A hash whose values have 64 bytes at most Redis keeps in one piece, in a third of the memory, and
reads at one place. So of a blob's name only what stands behind the digest is kept; an earlier
release kept it whole.
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
    check_text,
    memo_of,
    touched,
)
from statestore.backends.redis.keyspace import DIGEST_DIGITS
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
    "anchor",
)

ANCHOR_BYTES: Final = 8

_MARKS: Final = (b"-", b".")  # what a blob's name goes on with behind the digest

Value: TypeAlias = bytes | str | int


def to_fields(entry: Entry) -> dict[str, Value]:
    """The hash of `entry`. Raises `InputError` for what it cannot hold."""
    check_memo(entry.memo)
    return {
        "digest": entry.key.digest,
        "n_tokens": entry.key.n_tokens,
        "namespace": check_text(entry.namespace, "namespace"),
        "fingerprint": entry.fingerprint,
        "token_digest": entry.token_digest,
        "schema_id": check_text(entry.schema_id, "schema_id"),
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
        "reason": check_text(entry.reason, "reason"),
        "model": check_text(entry.model, "model"),
        "labels": pack_labels(entry.labels),
        "ancestor_tokens": check_count(entry.ancestor_tokens, "ancestor_tokens"),
        "memo": entry.memo,
        "anchor": b"" if entry.key.anchor is None else pack_anchor(entry.key.anchor),
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
        anchor,
    ) = values
    size = int(blob_bytes)
    if size < 0:
        raise ValueError(f"blob_bytes is {size}")
    return Entry(
        key=StateKey(digest, int(n_tokens), _anchor(anchor)),
        namespace=namespace.decode(),
        fingerprint=fingerprint,
        token_digest=token_digest,
        schema_id=schema_id.decode(),
        role=Role(role.decode()),
        blob=blob_of(digest, blob).decode(),
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


def pack_anchor(anchor: int) -> bytes:
    """An anchor as its field, and as those of ``anchors``."""
    return anchor.to_bytes(ANCHOR_BYTES, "big", signed=True)


def _anchor(packed: bytes | None) -> int | None:
    if packed is None or len(packed) != ANCHOR_BYTES:  # not known; damaged; an earlier release's
        return None
    return int.from_bytes(packed, "big", signed=True)


def blob_of(digest: bytes, kept: bytes) -> bytes:
    """A blob's name from what `to_fields` keeps of it."""
    return (digest.hex().encode() if kept[:1] in _MARKS else b"") + kept


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
        "reason": lambda reason: check_text(reason, "reason"),
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
    name = check_text(entry.blob, "blob")
    rest = name[DIGEST_DIGITS:]
    return rest if rest[:1].encode() in _MARKS else name
