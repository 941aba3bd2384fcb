"""Digests along a prompt, by the formulas that make a key.

    d0     = H(tag "prefix", fingerprint, namespace, salt)
    d(i+1) = H(d(i), number of tokens of chunk i+1, its tokens)
    plain  = H(tag "tokens", namespace, salt) continued with the tokens, then their number

H and its fields are those of `hashing`; numbers are u64 and tokens u32, little-endian. The prefix
digest commits to the chunks, hence to the computation; the plain one to the tokens alone, so that
the same text stored under other segments or another fingerprint can be told from text never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from statestore.errors import InputError
from statestore.keys import hashing
from statestore.keys.namespace import Namespace
from statestore.keys.tokens import TOKEN_BYTES


def prefix_digests(
    fingerprint: bytes, namespace: Namespace, packed: bytes, ends: Sequence[int]
) -> tuple[bytes, ...]:
    """The chain's digest at every chunk end (in tokens) of the packed tokens."""
    check_fingerprint(fingerprint)
    salt = namespace.salt
    link = hashing.digest(hashing.tag("prefix"), fingerprint, namespace.name.encode(), salt)
    chain: list[bytes] = []
    begin = 0
    for end in ends:
        piece = packed[begin * TOKEN_BYTES : end * TOKEN_BYTES]
        link = hashing.digest(link, hashing.u64(end - begin), piece)
        chain.append(link)
        begin = end
    return tuple(chain)


def token_digests(
    namespace: Namespace, packed: bytes, positions: Iterable[int]
) -> tuple[bytes, ...]:
    """The plain digest of the first n tokens, for every n of the ascending `positions`."""
    running = hashing.start(hashing.tag("tokens"), namespace.name.encode(), namespace.salt)
    view = memoryview(packed)
    digests: list[bytes] = []
    begin = 0
    for end in positions:
        running.update(view[begin * TOKEN_BYTES : end * TOKEN_BYTES])
        closed = running.copy()
        closed.update(hashing.u64(end))
        digests.append(closed.digest())
        begin = end
    return tuple(digests)


def check_fingerprint(digest: bytes) -> None:
    """Raises `InputError` unless `digest` can be a fingerprint's."""
    if not hashing.is_digest(digest):
        raise InputError(f"a fingerprint digest is {hashing.DIGEST_BYTES} bytes, not {digest!r}")
