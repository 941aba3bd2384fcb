"""A place that could not be opened: nothing is found in it and nothing kept, until it can be.

For a server's worker that starts in place of one that died, just when the disk fails or the tables
are those of a newer release: it computes its requests, as the other workers do.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from statestore.backends.base import Backend
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups
from statestore.backends.sightings import Sightings, sightings_of
from statestore.backends.wrapper import Wrapper
from statestore.errors import ClosedError, StateStoreError, UnavailableError

log = logging.getLogger(__name__)

#: Seconds between two tries to open it; a try may wait for other processes' locks.
AGAIN_S: Final = 5.0


class Late(Wrapper):
    """The place at `url`, once `opening` gives it; each call tries, one in `AGAIN_S` at most.

    Until then a call raises `UnavailableError` with the reason, there are no leases, and no tally.

    Args:
        url: of the place, without secrets.
        opening: opens it, or raises `StateStoreError`.
        why: it could not be opened just now.
        monotonic: seconds; says when to try again.
    """

    def __init__(
        self,
        url: str,
        opening: Callable[[], Backend],
        why: StateStoreError,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._opening = opening
        self._why = str(why)
        self._monotonic = monotonic
        self._opened: Backend | None = None
        self._closed = False
        self._again_at = monotonic() + AGAIN_S
        self._lock = threading.Lock()  # of whoever opens it; nobody waits for them
        log.warning("%s cannot be opened, and is done without until it can be: %s", url, why)

    @property
    def inner(self) -> Backend:
        """The place. Raises `UnavailableError` while it cannot be opened."""
        if self._opened is None and self._lock.acquire(blocking=False):
            try:
                self._try()
            finally:
                self._lock.release()
        if self._opened is None:
            raise UnavailableError(self._why)
        return self._opened

    @inner.setter
    def inner(self, place: Backend) -> None:
        self._opened = place

    def _try(self) -> None:
        if self._closed:
            raise ClosedError(f"{self._url} is closed")
        if self._opened is not None or self._monotonic() < self._again_at:
            return
        try:
            self._opened = self._opening()
        except StateStoreError as error:
            self._why = str(error)
            self._again_at = self._monotonic() + AGAIN_S
        else:
            log.info("%s is open", self._url)

    def _there(self) -> Backend | None:
        try:
            return self.inner
        except UnavailableError:
            return None

    @property
    def url(self) -> str:
        """The URL that opens this place again, without secrets."""
        return self._url

    @property
    def leases(self) -> Leases | None:
        """The leases that the place gives out; none while it is not there."""
        place = self._there()
        return None if place is None else place.leases

    @property
    def sightings(self) -> Sightings:
        """The place's index. It may be asked for once, and be of use later."""
        return _LateSightings(self)

    @property
    def lookups(self) -> Lookups | None:
        """The tally that the place keeps. Raises `UnavailableError`: counts wait for it."""
        return super().lookups

    def has_headroom(self, namespace: str) -> bool:
        """Whether the place has room to spare."""
        return self._there() is not None and super().has_headroom(namespace)

    def close(self) -> None:
        """Close the place, if it was ever there."""
        with self._lock:
            self._closed = True
        if self._opened is not None:
            self._opened.close()


class _LateSightings:
    """The index of a place that is opened late."""

    def __init__(self, place: Late) -> None:
        self._place = place

    def _index(self) -> Sightings:
        index = sightings_of(self._place.inner)
        if index is None:
            raise UnavailableError(f"{self._place.url} keeps no index of what was seen")
        return index

    def seen(self, marks: Sequence[bytes]) -> int:
        """As `Sightings` says."""
        return self._index().seen(marks)

    def note(self, marks: Sequence[bytes]) -> None:
        """As `Sightings` says."""
        self._index().note(marks)
