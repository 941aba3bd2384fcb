"""What an entry may hold for every catalog to keep it, and which entries a filter wants. Pure."""

from __future__ import annotations

import math

from statestore.blobs.base import NAME
from statestore.entry import Entry, EntryFilter
from statestore.errors import InputError

_HEX = frozenset("0123456789abcdef")


def check_entry(entry: Entry) -> None:
    """Raise `InputError` for a field that no catalog can keep."""
    for name in ("namespace", "schema_id", "reason", "model"):
        check_text(getattr(entry, name), name)
    for name in ("cost_s", "created_at", "used_at", "score", "expires_at"):
        check_number(getattr(entry, name), name)
    if not NAME.fullmatch(entry.blob):
        raise InputError(f"entry {entry.key}: {entry.blob!r} is no blob's name")


def check_text(value: str, field: str) -> None:
    """Raise `InputError` for what is no text to some catalog."""
    try:
        value.encode()
    except UnicodeEncodeError:
        pass
    else:
        if "\x00" not in value:
            return
    raise InputError(f"entry field {field}: {value!r} is not text that a catalog can hold")


def check_number(value: float | None, field: str) -> None:
    """Raise `InputError` for NaN: a catalog would take it for something else."""
    if value is not None and math.isnan(value):
        raise InputError(f"entry field {field} is not a number")


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
