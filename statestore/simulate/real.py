"""A replay through a real store: backend, budget and policy as a URL opens them, blobs of a few
bytes, and the trace's own clock.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final
from urllib.parse import quote

from statestore.backends.base import Backend
from statestore.backends.headroom import has_headroom
from statestore.entry import Entry, EntryFilter
from statestore.eviction import make_policy
from statestore.eviction.policy import STOP_S, transient
from statestore.keys import StateKey
from statestore.settings import open_store
from statestore.simulate.admission import Admission
from statestore.simulate.replay import Result, replay
from statestore.simulate.trace import Request
from statestore.simulate.workers import Dealt

#: Blob bytes of a state in such a replay.
BLOB: Final = bytes(64)

_PLENTY: Final = 1 << 60  # bytes


class BackendShelf:
    """A `Shelf` that is a backend with its budget, or the same one as several workers have it open.
    What is there already is not counted.
    """

    def __init__(self, *backends: Backend) -> None:
        self._backends = Dealt(backends)
        self._now = 0.0
        self._put = 0
        self._before = self._backend.usage().entries

    @property
    def _backend(self) -> Backend:
        return self._backends.one

    @property
    def kept(self) -> int:
        """Entries kept; what has expired takes up room, and no more."""
        known = self._backend.entries(EntryFilter())
        return sum(entry.expires_at is None or entry.expires_at > self._now for entry in known)

    @property
    def evictions(self) -> int:
        """Entries that went so far."""
        return self._before + self._put - self._backend.usage().entries

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys` that is stored, with its blob."""
        self._now = now
        found = self._backends.deal().longest(keys, now)
        return None if found is None or self._backend.read(found) is None else found

    def put(self, entry: Entry, now: float) -> bool:
        """Publish it; passing stops for as long as they last, and where there is room, as the
        runtime leaves them.
        """
        if transient(entry) and not has_headroom(self._backend, entry.namespace):
            return False
        sized = replace(entry, blob=f"{entry.key}.{now:.0f}", blob_bytes=len(BLOB))
        if transient(entry):
            sized = replace(sized, expires_at=now + STOP_S)
        published = self._backend.publish(sized, [BLOB])
        self._put += published
        return published

    def hit(self, entry: Entry, now: float) -> None:
        """Touch it."""
        self._backend.touch(entry, now, now)


def replay_through(
    url: str,
    requests: Sequence[Request],
    policy: str,
    admission: Admission,
    budget_states: int | None,
    progress: Callable[[int], None] | None = None,
    workers: int = 1,
) -> Result:
    """What a replay makes of `requests` in the store at `url`, within a budget of so many states,
    which so many workers have open.

    The store is best empty; what is put stays there. Raises what opening it raises.
    """
    limit = _PLENTY if budget_states is None else budget_states * len(BLOB)
    budget = f"&budget={limit}" if "budget=" not in url else ""
    mark = "&" if "?" in url else "?"
    shared = url
    if workers > 1 and url.partition("?")[0] == "memory:":
        shared = url.replace("memory:", f"memory://{secrets.token_hex(8)}", 1)
    with ExitStack() as opened:
        backends = [
            opened.enter_context(
                open_store(f"{shared}{mark}policy={quote(policy)}{budget}")
            ).backend
            for _ in range(workers)
        ]
        shelf = BackendShelf(*backends)
        return replay(requests, make_policy(policy), admission, budget_states, shelf, progress)
