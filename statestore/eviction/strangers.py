"""States that other processes put and use, as samples show them: how long they waited between two
looks, and that somebody came back to them. Without it a process would know its own requests alone,
and where many workers share a store each sees few.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from statestore.eviction.curves import Curves, Kind


@dataclass(slots=True)
class _Met:
    """A state as it was met last."""

    used_at: float
    looked_s: float  # its age then
    kind: Kind
    tokens: int


class Strangers:
    """Brings what becomes of them into `curves`; the newest `limit` are remembered."""

    def __init__(self, curves: Curves, limit: int) -> None:
        self._curves = curves
        self._limit = limit
        self._met: OrderedDict[bytes, _Met] = OrderedDict()

    def __len__(self) -> int:
        return len(self._met)

    def meet(self, digest: bytes, used_at: float, kind: Kind, tokens: int, now: float) -> None:
        """It is stored at `now`, and was last used at `used_at`."""
        known = self._met.get(digest)
        if known is not None and used_at > known.used_at:
            self._used(known, used_at)
            known = None
        if known is None:
            age_s = max(now - used_at, 0.0)
            self._met[digest] = _Met(used_at, age_s, kind, tokens)
            if len(self._met) > self._limit:
                self._met.popitem(last=False)
        else:
            self._waited(known, now - known.used_at)

    def used(self, digest: bytes, used_at: float, kind: Kind, tokens: int, now: float) -> None:
        """This process has a use for one that it knows by its entry alone."""
        known = self._met.pop(digest, None)
        if known is None or known.used_at != used_at:
            known = _Met(used_at, max(now - used_at, 0.0), kind, tokens)
        self._used(known, now)

    def _used(self, known: _Met, at: float) -> None:
        self._waited(known, at - known.used_at)
        self._curves.used(known.kind, known.looked_s, known.tokens)
        self._curves.ended(known.tokens)

    def _waited(self, known: _Met, age_s: float) -> None:
        if age_s > known.looked_s:
            self._curves.waited(known.kind, known.looked_s, age_s, known.tokens)
            known.looked_s = age_s
