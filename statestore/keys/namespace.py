"""A tenant's key space: a name that everyone may see, and a salt that nobody may.

The salt enters every digest of the namespace, so that a tenant cannot learn from the store whether
another has read a given document. It comes from configuration and is written nowhere: not in the
catalog, not in a blob, not in a message or a repr.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from statestore.errors import InputError

NAME = re.compile(r"[a-zA-Z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Namespace:
    """Name and salt. Raises `InputError` for a name outside ``[a-zA-Z0-9._-]{1,64}``."""

    name: str = "default"
    salt: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        if not _is_name(self.name):
            raise InputError(
                f"namespace {self.name!r}: a name is 1 to 64 of letters, digits, '.', '_' and '-'"
            )
        if type(self.salt) is not bytes:
            raise InputError(
                f"namespace {self.name!r}: the salt is bytes, not {type(self.salt).__name__}"
            )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None
