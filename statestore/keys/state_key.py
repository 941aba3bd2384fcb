"""The content address of a state: a digest, and how many tokens it stands after.

As text ``<64 hex digits>-<tokens>``; `StateKey.parse` reads exactly what `str` writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from statestore.errors import InputError
from statestore.keys.hashing import DIGEST_BYTES, is_digest

TOKENS_LIMIT = 1 << 63  # what a catalog's column holds
TEXT = re.compile(r"([0-9a-f]{64})-(0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True, order=True)
class StateKey:
    """Digest (32 bytes) and number of tokens. Raises `InputError` where they cannot be a key.

    The anchor is not part of a key's identity: it says beside which other keys a catalog may keep
    it. Keys of one stretch of prompts that begin alike share an anchor. It follows from the digest,
    but only whoever has the prompt can compute it. 64 bits, signed; ``None``: not known.
    """

    digest: bytes
    n_tokens: int
    anchor: int | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not is_digest(self.digest):
            raise InputError(f"a state key's digest is {DIGEST_BYTES} bytes, not {self.digest!r}")
        if type(self.n_tokens) is not int or not 0 <= self.n_tokens < TOKENS_LIMIT:
            raise InputError(
                f"a state key's token count is an integer in 0..2**63-1, not {self.n_tokens!r}"
            )

    @property
    def hex(self) -> str:
        """The digest in 64 hex digits."""
        return self.digest.hex()

    def __str__(self) -> str:
        return f"{self.digest.hex()}-{self.n_tokens}"

    @classmethod
    def parse(cls, text: str) -> StateKey:
        """The key that `str` wrote. Raises `InputError` for any other text."""
        match = TEXT.fullmatch(text)
        if match is None:
            raise InputError(
                f"{text!r} is no state key: expected 64 lower-case hex digits, '-', a token count"
            )
        return cls(bytes.fromhex(match[1]), int(match[2]))
