"""The port of a blob store: named byte strings, written once, whole or not at all.

Names match `NAME` and are unique to one write, so a blob never changes. Thread
safety, buffers and errors are those of `statestore.backends.base`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

NAME: Final = re.compile(r"[0-9a-z]{2}[0-9a-z.-]{0,126}")


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One blob in a listing."""

    name: str
    size_bytes: int
    modified_at: float  # seconds since the epoch


class NotCachedError(Exception):
    """A blob, or a part of it, would have to be waited for."""


class BlobStore(Protocol):
    """Keeps blobs by name."""

    def put(self, name: str, blob: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write the buffers, one after the other, under `name`; durable when this returns."""

    def get(self, name: str, *, limit_bytes: int | None = None) -> memoryview | None:
        """The whole blob, or its first `limit_bytes`; ``None`` where there is none.

        Raises `CorruptError` where this one blob cannot be read back, and others may be.
        """

    def size(self, name: str) -> int | None:
        """Size in bytes, or ``None``."""

    def delete(self, name: str) -> bool:
        """Remove the blob; ``False`` where it is known to have been gone already."""

    def list(self) -> Iterator[BlobInfo]:
        """Every blob, in no order, and what interrupted writes left behind."""


@runtime_checkable
class RemovesMany(Protocol):
    """A blob store where removing many at once is faster than one after the other."""

    def delete_many(self, names: Sequence[str]) -> None:
        """Remove these blobs, whether they are there or not. After an error some may be left."""
