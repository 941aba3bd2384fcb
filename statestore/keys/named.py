"""The key of a named state: one that no prefix of tokens leads to, found by its name alone."""

from __future__ import annotations

from statestore.errors import InputError
from statestore.keys import hashing
from statestore.keys.namespace import Namespace
from statestore.keys.prefix import check_fingerprint
from statestore.keys.state_key import StateKey


def named_key(
    namespace: Namespace, name: str, fingerprint_digest: bytes, n_tokens: int
) -> StateKey:
    """H(tag "named", namespace, salt, name, fingerprint). The digest does not depend on `n_tokens`.

    Raises `InputError` for a name that is empty or no text, or a digest that is no fingerprint's.
    """
    if not name:
        raise InputError("a named state needs a name")
    check_fingerprint(fingerprint_digest)
    digest = hashing.digest(
        hashing.tag("named"),
        namespace.name.encode(),
        namespace.salt,
        hashing.utf8(name, "the name"),
        fingerprint_digest,
    )
    return StateKey(digest, n_tokens)
