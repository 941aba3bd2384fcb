"""From token ids to the keys that states are stored under. Pure: no clock, no files, no torch.

`plan` is the way in; the rest are its parts: `pack_tokens`, `schedule` (chunks and boundaries), the
prefix and plain token digests, `Fingerprint`, `Namespace`, `StateKey`, and `named_key` for states
that are found by name. Keys are the same in every process, on every platform, and for every type of
token array; ``tests/golden/keys.json`` watches that.
"""

from __future__ import annotations

from statestore.keys.fingerprint import Fingerprint
from statestore.keys.hashing import KEY_VERSION
from statestore.keys.named import named_key
from statestore.keys.namespace import Namespace
from statestore.keys.plan import KeyedBoundary, Plan, fork_at, plan
from statestore.keys.schedule import Boundary, ChunkRule, Role, Schedule, schedule
from statestore.keys.second_sight import fork_place, marks
from statestore.keys.state_key import StateKey
from statestore.keys.tokens import Tokens, pack_tokens

__all__ = [
    "KEY_VERSION",
    "Boundary",
    "ChunkRule",
    "Fingerprint",
    "KeyedBoundary",
    "Namespace",
    "Plan",
    "Role",
    "Schedule",
    "StateKey",
    "Tokens",
    "fork_at",
    "fork_place",
    "marks",
    "named_key",
    "pack_tokens",
    "plan",
    "schedule",
]
