"""What an entry may hold for every catalog to keep it, and which entries a filter wants. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from statestore.blobs.base import NAME
from statestore.entry import MEMO_BYTES, Entry, EntryFilter
from statestore.errors import InputError
from statestore.keys.state_key import TOKENS_LIMIT

#: Of one entry.
LABELS: Final = 64
#: Bytes in UTF-8: of a label's name, of its value, and of all names and values of an entry.
LABEL_NAME_BYTES: Final = 256
LABEL_VALUE_BYTES: Final = 4096
LABELS_BYTES: Final = 16_384
#: Bytes in UTF-8 of an entry's texts. What was stored before there were limits stays readable.
TEXT_BYTES: Final = {"namespace": 256, "schema_id": 256, "model": 1024, "reason": 4096}

_SHOWN: Final = 40  # characters of what is too long
_HEX = frozenset("0123456789abcdef")


def check_entry(entry: Entry) -> None:
    """Raise `InputError` for a field that no catalog can keep."""
    for name in ("namespace", "schema_id", "reason", "model"):
        check_text(getattr(entry, name), name)
    for name in ("cost_s", "created_at", "used_at", "score", "expires_at"):
        check_number(getattr(entry, name), name)
    check_memo(entry.memo)
    check_labels(entry.labels)
    check_count(entry.ancestor_tokens, "ancestor_tokens")
    if not NAME.fullmatch(entry.blob):
        raise InputError(f"entry {entry.key}: {entry.blob!r} is no blob's name")


def check_text(value: str, field: str) -> str:
    """`value`. Raises `InputError` for what is no text to some catalog, or longer than its field
    may be.
    """
    most = TEXT_BYTES.get(field)
    if most is not None and len(value) > most:  # ahead of any copy of it
        raise _too_long(value, field, f"{len(value):,} characters, {most:,} bytes")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = -1
    if size < 0 or "\x00" in value:
        raise InputError(f"entry field {field}: {value!r} is not text that a catalog can hold")
    if most is not None and size > most:
        raise _too_long(value, field, f"{size:,} bytes, {most:,}")
    return value


def _too_long(value: str, field: str, sizes: str) -> InputError:
    return InputError(f"entry field {field}: {value[:_SHOWN]!r}... has {sizes} at most: shorten it")


def fitting(text: str, field: str) -> str:
    """What `field` can hold of a text that nobody chose, as an error's."""
    held = text.encode(errors="replace").decode().replace("\x00", "?")
    return held[: TEXT_BYTES[field] // 4]


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise `InputError` for a label that is no text (as JSON or msgpack, a zero byte is one), and
    for more than an entry may have: every lookup that finds the entry reads them.
    """
    if len(labels) > LABELS:
        raise InputError(f"entry field labels: {len(labels):,} labels, {LABELS} at most: drop some")
    held = sum(
        _label_bytes(name, name, "name", LABEL_NAME_BYTES)
        + _label_bytes(value, name, "value", LABEL_VALUE_BYTES)
        for name, value in labels.items()
    )
    if held > LABELS_BYTES:
        raise InputError(
            f"entry field labels: {held:,} bytes together, {LABELS_BYTES:,} at most: "
            "shorten or drop some"
        )


def _label_bytes(piece: str, name: str, what: str, most: int) -> int:
    try:
        size = len(piece) if len(piece) > most else len(piece.encode())
    except (AttributeError, TypeError, UnicodeEncodeError):  # from outside may come anything
        raise InputError(f"entry field labels: {piece!r} is no text") from None
    if size > most:
        raise InputError(
            f"entry field labels: the {what} of label {name[:_SHOWN]!r} has {size:,} bytes, "
            f"{most:,} at most: shorten it"
        )
    return size


def check_count(value: int, field: str) -> int:
    """`value`. Raises `InputError` for what is no number of tokens."""
    if not 0 <= value < TOKENS_LIMIT:
        raise InputError(f"entry field {field}: {value} is no number of tokens")
    return value


def check_memo(memo: str) -> None:
    """Raise `InputError` for a memo that no catalog keeps."""
    check_text(memo, "memo")
    if len(memo.encode()) > MEMO_BYTES:
        raise InputError(f"entry field memo: {len(memo.encode())} bytes, {MEMO_BYTES} at most")


def memo_of(stored: object) -> str:
    """A memo as a catalog gives it back: what is damaged is as none."""
    if isinstance(stored, bytes):
        stored = stored.decode(errors="replace")
    return stored if isinstance(stored, str) and len(stored.encode()) <= MEMO_BYTES else ""


def check_number(value: float | None, field: str) -> None:
    """Raise `InputError` for NaN: a catalog would take it for something else."""
    if value is not None and math.isnan(value):
        raise InputError(f"entry field {field} is not a number")


def touched(now: float, score: float, memo: str | None, expires_at: float | None) -> dict[str, Any]:
    """The fields that a touch sets, but for its count; ``None`` is never. Raises `InputError` for
    what no catalog can keep.
    """
    fields: dict[str, Any] = {"used_at": float(now), "score": float(score)}
    if memo is not None:
        check_memo(memo)
        fields["memo"] = memo
    if expires_at is not None:
        fields["expires_at"] = None if expires_at == math.inf else float(expires_at)
    for name, value in fields.items():
        check_number(value if isinstance(value, float) else None, name)
    return fields


def hex_prefix(where: EntryFilter) -> str:
    """The wanted leading digits of a digest. Raises `InputError` if they are none."""
    prefix = (where.key_prefix or "").lower()
    if len(prefix) > 64 or not set(prefix) <= _HEX:
        raise InputError(f"key prefix {where.key_prefix!r}: expected hex digits")
    return prefix


def matches(entry: Entry, where: EntryFilter) -> bool:
    """Whether `entry` is wanted."""
    names = ("namespace", "fingerprint", "token_digest", "model", "role", "status", "pinned")
    if any(getattr(where, name) not in (None, getattr(entry, name)) for name in names):
        return False
    if not (_in_time(entry, where) and _in_size(entry, where)):
        return False
    prefix = hex_prefix(where)
    return entry.key.hex.startswith(prefix) and where.labels.items() <= entry.labels.items()


def _in_time(entry: Entry, where: EntryFilter) -> bool:
    used, before, after = where.used_before, where.created_before, where.created_after
    return (
        (used is None or entry.used_at < used)
        and (before is None or entry.created_at < before)
        and (after is None or entry.created_at >= after)
    )


def _in_size(entry: Entry, where: EntryFilter) -> bool:
    least, most = where.at_least_bytes, where.at_most_bytes
    return (least is None or entry.blob_bytes >= least) and (
        most is None or entry.blob_bytes <= most
    )
