"""What lies behind one place's URL, for commands that look beside the store: a directory, a server.
Nothing is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from statestore.backends.redis.address import SCHEMES, Address
from statestore.settings import parse_place
from statestore.url import StoreURL

#: What would drop others' states to make room for a trial's, or end a slow one early.
_BOUNDS: Final = ("budget", "high", "low", "policy", "ttl", "find_ms", "fetch_ms")

_PATIENCE_S: Final = 30


@dataclass(frozen=True, slots=True)
class Premises:
    """One place, taken apart."""

    name: str  # of the tier
    url: StoreURL

    @classmethod
    def of(cls, name: str, text: str) -> Premises:
        """Raises `SettingsError` where the URL means nothing."""
        return cls(name, parse_place(text))

    @property
    def kind(self) -> str:
        """``"memory"``, ``"file"``, ``"postgresql"`` or ``"redis"``."""
        scheme = self.url.scheme.partition("+")[0]
        return "redis" if self.url.scheme in SCHEMES else scheme

    @property
    def directory(self) -> Path | None:
        """Where catalog or blobs lie on this machine's disks."""
        if self.kind == "file":
            return Path(self.url.path)
        blobs = self.url.options.get("blobs", "")
        return Path(blobs.removeprefix("file://")) if blobs.startswith("file://") else None

    @property
    def address(self) -> Address | None:
        """Of its Redis."""
        if self.kind != "redis":
            return None
        url = self.url
        return Address.of(url.scheme, url.netloc, url.path, url.options)

    @property
    def patient(self) -> str:
        """The URL with time enough for a query over every row, unless it says how much."""
        if self.kind != "postgresql" or "timeout_s" in self.url.options:
            return self.url.text
        return f"{self.url.text}&timeout_s={_PATIENCE_S}"  # it has options: where the blobs lie

    @property
    def unbounded(self) -> str:
        """The URL without budget and deadlines: a trial drops no state, and may take its time."""
        head, _, query = self.url.text.rpartition("?")
        if not (self.url.options or self.url.common):
            head, query = self.url.text, ""
        kept = [option for option in query.split("&") if option and not _bounds(option)]
        if self.kind in ("redis", "postgresql"):
            kept.append("find_ms=0")
        return f"{head}?{'&'.join(kept)}" if kept else head


def _bounds(option: str) -> bool:
    name = option.partition("=")[0]
    return name in _BOUNDS or name.startswith("budget.")
