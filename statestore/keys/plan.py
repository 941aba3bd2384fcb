"""From a prompt to its keys: what to look up, and in which pieces to compute what is missing.

>>> p = plan([[1, 2, 3], [4]], bytes(32), ChunkRule(chunk=2, min_chunk=1))
>>> p.ends, [b.position for b in p.boundaries]
((2, 3, 4), [3, 4])
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from statestore.errors import InputError
from statestore.keys.fingerprint import Fingerprint
from statestore.keys.namespace import Namespace
from statestore.keys.prefix import prefix_digests, token_digests
from statestore.keys.schedule import ChunkRule, Role, schedule
from statestore.keys.state_key import StateKey
from statestore.keys.tokens import Tokens, count_tokens, pack_tokens

#: Chunk ends that share an anchor.
STRETCH: Final = 64


@dataclass(frozen=True, slots=True)
class KeyedBoundary:
    """A chunk end where a state may be saved, with the key it is saved under."""

    position: int  # tokens read
    key: StateKey
    role: Role
    stable: bool  # stays where it is whatever follows
    segment: int  # in the caller's list, empty ones counted
    token_digest: bytes  # of the plain tokens up to here; 32 bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A prompt's tokens, chunk ends and boundaries; positions in tokens, ascending."""

    tokens: bytes = field(repr=False)  # u32 little-endian, all segments
    n_tokens: int
    ends: tuple[int, ...]
    keys: tuple[StateKey, ...] = field(repr=False)  # one for each end
    boundaries: tuple[KeyedBoundary, ...]

    @property
    def keys_deepest_first(self) -> tuple[StateKey, ...]:
        """The key at every chunk end, the longest prefix first: the order of a lookup. Beside the
        boundaries, forks of other prompts may be stored there.
        """
        return self.keys[::-1]

    def keys_behind(self, position: int) -> tuple[StateKey, ...]:
        """Those behind so many tokens, the longest prefix first."""
        return self.keys[bisect_right(self.ends, position) :][::-1]

    def stable_behind(self, position: int) -> tuple[StateKey, ...]:
        """The keys behind so many tokens at ends that stay whatever follows, shallow first."""
        last = len(self.ends) if self.boundaries[-1].stable else len(self.ends) - 1
        return self.keys[bisect_right(self.ends, position) : last]


def plan(
    segments: Sequence[Tokens],
    fingerprint: Fingerprint | bytes,
    rule: ChunkRule,
    namespace: Namespace | None = None,
) -> Plan:
    """The plan of a prompt given as token ids per segment; no namespace is the default one.

    Raises `TokenError` (naming the segment), `PromptError` where no token is left, and `InputError`
    where the fingerprint was made for other chunk sizes than `rule`.
    """
    space = Namespace() if namespace is None else namespace
    digest = fingerprint if isinstance(fingerprint, bytes) else _digest_for(fingerprint, rule)
    packed = [_pack_segment(i, segment) for i, segment in enumerate(segments)]
    cut = schedule([count_tokens(piece) for piece in packed], rule)
    tokens = b"".join(packed)
    chain = prefix_digests(digest, space, tokens, cut.ends)
    keys = {
        end: StateKey(link, end, anchor)
        for end, link, anchor in zip(cut.ends, chain, anchors(chain), strict=True)
    }
    plain = token_digests(space, tokens, [b.position for b in cut.boundaries])
    boundaries = tuple(
        KeyedBoundary(b.position, keys[b.position], b.role, b.stable, b.segment, token_digest)
        for b, token_digest in zip(cut.boundaries, plain, strict=True)
    )
    return Plan(tokens, cut.ends[-1], cut.ends, tuple(keys.values()), boundaries)


def anchors(chain: Sequence[bytes]) -> list[int]:
    """The anchor of each of a prompt's chunk ends, whose prefix digests are given shallow first:
    the beginning of the first digest of its stretch of `STRETCH`.
    """
    heads = [int.from_bytes(digest[:8], "big", signed=True) for digest in chain[::STRETCH]]
    return [head for head in heads for _ in range(STRETCH)][: len(chain)]


def fork_at(plan: Plan, key: StateKey, namespace: Namespace | None = None) -> KeyedBoundary:
    """The boundary at a stable chunk end of `plan` where other prompts leave it.

    `namespace` is the one that the plan was made for.
    """
    space = Namespace() if namespace is None else namespace
    position = key.n_tokens
    (plain,) = token_digests(space, plan.tokens, [position])
    segment = next(b.segment for b in plan.boundaries if b.position >= position)
    return KeyedBoundary(position, key, Role.FORK, True, segment, plain)


def _digest_for(fingerprint: Fingerprint, rule: ChunkRule) -> bytes:
    made_for = (fingerprint.chunk, fingerprint.min_chunk)
    if made_for != (rule.chunk, rule.min_chunk):
        raise InputError(
            f"the fingerprint is of chunk and min_chunk {made_for}, the rule has "
            f"{(rule.chunk, rule.min_chunk)}: take both from one engine profile"
        )
    return fingerprint.digest


def _pack_segment(index: int, segment: Tokens) -> bytes:
    try:
        return pack_tokens(segment)
    except InputError as error:
        raise type(error)(f"segment {index}: {error}") from error
