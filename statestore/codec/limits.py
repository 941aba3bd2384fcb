"""How much a reader is willing to take in. Checked against what a container declares, ahead of any
allocation of that size.
"""

from __future__ import annotations

from dataclasses import dataclass

from statestore.errors import LimitError


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest container that is read."""

    header_bytes: int = 1 << 20
    tensors: int = 1024
    dimensions: int = 8
    name_bytes: int = 256
    provenance_fields: int = 64
    provenance_bytes: int = 4096  # of one value
    decoded_bytes: int = 4 << 30

    @property
    def container_bytes(self) -> int:
        """What no sound container of a state within these limits comes near."""
        return 2 * self.decoded_bytes + self.header_bytes + (1 << 20)

    def check(self, what: str, size: int, limit: int) -> None:
        """Raises `LimitError` if `size` is beyond `limit`."""
        if size > limit:
            raise LimitError(
                f"{what} is {size}, the limit here is {limit}: "
                "raise it in Limits if this container is yours"
            )
