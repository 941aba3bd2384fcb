"""An entry as an archive spells it, and the one parser of it.

A MessagePack map with exactly `_FIELDS`, in that order and in one spelling. Not among them is what
belongs to one store: the blob's name, its size (the record says it), the tier, the status (only
what is ready is exported).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

import msgpack  # type: ignore[import-untyped]

from statestore.entry import Entry, Role
from statestore.errors import InputError, LayoutError, LimitError
from statestore.keys import StateKey
from statestore.keys.hashing import DIGEST_BYTES
from statestore.keys.state_key import TOKENS_LIMIT

ENTRY_BYTES: Final = 1 << 18  # 256 KiB; labels are the only part of any length
LABELS: Final = 1024
TEXT_BYTES: Final = 1 << 16  # 64 KiB; of one text

_FIELDS: Final = (
    "key",
    "tokens",
    "namespace",
    "fingerprint",
    "token_digest",
    "schema",
    "role",
    "state_bytes",
    "output",
    "cost_s",
    "created_at",
    "used_at",
    "hits",
    "score",
    "ancestor_tokens",
    "pinned",
    "expires_at",
    "model",
    "labels",
)

Kind = TypeVar("Kind")


def pack_entry(entry: Entry) -> bytes:
    """The entry's one spelling. Raises `LimitError` for one that no reader takes."""
    values = (
        entry.key.digest,
        entry.key.n_tokens,
        entry.namespace,
        entry.fingerprint,
        entry.token_digest,
        entry.schema_id,
        entry.role.value,
        entry.state_bytes,
        entry.has_output,
        float(entry.cost_s),
        float(entry.created_at),
        float(entry.used_at),
        entry.hits,
        float(entry.score),
        entry.ancestor_tokens,
        entry.pinned,
        None if entry.expires_at is None else float(entry.expires_at),
        entry.model,
        dict(sorted(entry.labels.items())),
    )
    packed: bytes = msgpack.packb(dict(zip(_FIELDS, values, strict=True)))
    if len(packed) > ENTRY_BYTES or len(entry.labels) > LABELS:
        raise LimitError(
            f"{entry.key}: {len(entry.labels)} labels, {len(packed)} bytes with its entry; an "
            f"archive holds {LABELS} and {ENTRY_BYTES} of one state"
        )
    return packed


def parse_entry(data: bytes, blob_bytes: int) -> Entry:
    """The entry spelt by `data`, as yet without a blob's name.

    Raises:
        LayoutError: it is none, or not in its one spelling.
        LimitError: it holds more than an entry may.
    """
    fields = unpack(data)
    if not isinstance(fields, dict) or tuple(fields) != _FIELDS:
        found = list(fields)[:30] if isinstance(fields, dict) else type(fields).__name__
        raise LayoutError(f"entry: the fields are {found}, expected {list(_FIELDS)}")
    try:
        entry = _entry(fields, blob_bytes)
    except InputError as error:
        raise LayoutError(f"entry: {error}") from error
    if pack_entry(entry) != data:
        raise LayoutError("entry: not in its one spelling")
    return entry


def unpack(data: bytes) -> object:
    """What `data` spells in MessagePack, within the limits. Raises as `parse_entry`."""
    try:
        unpacked: object = msgpack.unpackb(
            data,
            strict_map_key=True,
            max_str_len=TEXT_BYTES,
            max_bin_len=DIGEST_BYTES,
            max_array_len=2,
            max_map_len=max(LABELS, len(_FIELDS)),
            max_ext_len=0,
        )
    except msgpack.StackError as error:
        raise LimitError("entry: nested beyond reason") from error
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        kind = LimitError if "exceeds max_" in str(error) else LayoutError
        raise kind(f"entry: no sound MessagePack: {error or type(error).__name__}") from error
    return unpacked


def _entry(fields: Mapping[str, Any], blob_bytes: int) -> Entry:
    expires_at = fields["expires_at"]
    return Entry(
        key=StateKey(_digest(fields, "key"), _count(fields, "tokens")),
        namespace=_typed(fields, "namespace", str),
        fingerprint=_digest(fields, "fingerprint"),
        token_digest=_digest(fields, "token_digest"),
        schema_id=_typed(fields, "schema", str),
        role=_role(_typed(fields, "role", str)),
        blob="",
        blob_bytes=blob_bytes,
        state_bytes=_count(fields, "state_bytes"),
        has_output=_typed(fields, "output", bool),
        cost_s=_number(fields, "cost_s"),
        created_at=_number(fields, "created_at"),
        used_at=_number(fields, "used_at"),
        hits=_count(fields, "hits"),
        score=_number(fields, "score"),
        ancestor_tokens=_count(fields, "ancestor_tokens"),
        pinned=_typed(fields, "pinned", bool),
        expires_at=None if expires_at is None else _number(fields, "expires_at"),
        model=_typed(fields, "model", str),
        labels=_labels(_typed(fields, "labels", dict)),
    )


def _typed(fields: Mapping[str, Any], name: str, kind: Callable[..., Kind]) -> Kind:
    value = fields[name]
    if type(value) is not kind:  # a bool is an int to isinstance
        expected = getattr(kind, "__name__", "")
        raise LayoutError(f"entry: {name} is {type(value).__name__}, expected {expected}")
    return cast("Kind", value)


def _count(fields: Mapping[str, Any], name: str) -> int:
    count = _typed(fields, name, int)
    if not 0 <= count < TOKENS_LIMIT:
        raise LayoutError(f"entry: {name} is {count}, expected 0..{TOKENS_LIMIT - 1}")
    return count


def _number(fields: Mapping[str, Any], name: str) -> float:
    number = _typed(fields, name, float)
    if not math.isfinite(number):
        raise LayoutError(f"entry: {name} is {number}")
    return number


def _digest(fields: Mapping[str, Any], name: str) -> bytes:
    value = _typed(fields, name, bytes)
    if len(value) != DIGEST_BYTES:
        raise LayoutError(f"entry: {name} has {len(value)} bytes, expected {DIGEST_BYTES}")
    return value


def _role(name: str) -> Role:
    if name not in [role.value for role in Role]:
        raise LayoutError(f"entry: role {name!r} is not known")
    return Role(name)


def _labels(found: Mapping[object, object]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise LayoutError("entry: labels are texts with names")
        labels[name] = value
    return labels
