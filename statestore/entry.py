"""The metadata of one stored state: what a catalog knows without opening the blob.

An entry is a value: backends return copies and a change is a new entry. Times are seconds since the
epoch (UTC); sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, NamedTuple

from statestore.keys import Role, StateKey

__all__ = [
    "Candidate",
    "Change",
    "Departed",
    "Entry",
    "EntryFilter",
    "Evicted",
    "Role",
    "Status",
    "Usage",
]

#: Bytes of a memo, in UTF-8.
MEMO_BYTES: Final = 96


class Status(StrEnum):
    """Whether an entry may be used."""

    READY = "ready"
    QUARANTINED = "quarantined"  # damaged or foreign: never returned, replaced by the next put


@dataclass(frozen=True, slots=True)
class Entry:
    """One state's row."""

    key: StateKey
    namespace: str
    fingerprint: bytes  # digest, 32 bytes
    token_digest: bytes  # of the plain tokens, however they were cut into segments; 32 bytes
    schema_id: str
    role: Role
    blob: str  # the blob's exact name, write id included
    blob_bytes: int
    state_bytes: int  # decoded size
    has_output: bool  # keeps what the first new token needs
    cost_s: float  # seconds of computing that a hit saves, counted from the empty state
    created_at: float
    used_at: float
    hits: int = 0
    score: float = 0.0  # the lowest goes first; see `statestore.eviction`
    ancestor_tokens: int = 0  # length of the nearest state that was stored when this one came
    pinned: bool = False
    expires_at: float | None = None
    status: Status = Status.READY
    reason: str = ""  # why it is quarantined
    model: str = ""  # a name for people; never part of a decision
    labels: Mapping[str, str] = field(default_factory=dict)
    memo: str = ""  # what an eviction policy knows of it; up to `MEMO_BYTES`, opaque to all others
    tier: str = field(default="", compare=False)  # where tiers found it; never stored


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of an entry's fields; an absent one stays as it is."""

    pinned: bool | None = None
    expires_at: float | None = None  # ``inf``: never
    labels: Mapping[str, str] | None = None
    status: Status | None = None
    reason: str | None = None

    def given(self) -> dict[str, Any]:
        """The fields that change, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}


class Candidate(NamedTuple):
    """What an eviction policy judges an entry by; see `Entry`, whose fields these are."""

    key: StateKey
    role: Role
    blob_bytes: int
    used_at: float
    hits: int
    ancestor_tokens: int
    memo: str


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries a listing wants; an absent field admits everything."""

    namespace: str | None = None
    fingerprint: bytes | None = None
    token_digest: bytes | None = None
    key_prefix: str | None = None  # leading hex digits of the key's digest
    model: str | None = None
    role: Role | None = None
    status: Status | None = None
    pinned: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    used_before: float | None = None
    created_before: float | None = None
    created_after: float | None = None  # or at that moment
    at_least_bytes: int | None = None  # of the blob
    at_most_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Departed:
    """What is still known of an entry that is gone; backends keep the newest few thousand."""

    key: StateKey
    reason: str  # "deleted", "expired", "evicted" or "quarantined: ..."
    departed_at: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What a backend holds."""

    entries: int
    blob_bytes: int
    state_bytes: int
    quarantined: int
    pinned: int
    age: float = 0.0  # the highest score evicted so far, what ageing policies count from
    pinned_bytes: int = 0  # of the blobs that no eviction removes


@dataclass(frozen=True, slots=True)
class Evicted:
    """What one call removed to make room."""

    entries: int
    blob_bytes: int
    tokens: int = field(default=0, compare=False)  # that they stood after, in all
