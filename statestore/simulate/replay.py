"""Replays requests against a store that is only its entries: what is found, stored, dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from statestore.entry import Entry, Role
from statestore.eviction import Policy
from statestore.keys import StateKey
from statestore.simulate.admission import Admission
from statestore.simulate.shelf import OwnShelf
from statestore.simulate.trace import Request

HOUR_S: Final = 3600.0
#: Requests between two reports of progress.
REPORTED: Final = 500
#: A replay's clock begins here, as if its first request came now and not in 1970.
BEGAN: Final = 1_700_000_000.0

_NOTHING: Final = bytes(32)


@dataclass(slots=True)
class Tally:
    """What came of some requests."""

    requests: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0
    states_written: int = 0
    evictions: int = 0


@dataclass(slots=True)
class Result:
    """What came of a replay; `hours` are tallies by the hour from the first request."""

    policy: str
    admission: str
    budget_states: int | None  # ``None``: unlimited
    total: Tally = field(default_factory=Tally)
    states_kept: int = 0
    hours: dict[int, Tally] = field(default_factory=dict)  # those without requests are missing

    @property
    def hit_token_share(self) -> float:
        """Tokens found, of all that were asked; 0.0 to 1.0."""
        return self.total.hit_tokens / max(self.total.input_tokens, 1)

    def tallies(self, since_s: float) -> tuple[Tally, Tally]:
        """Where to count what happens `since_s` seconds after the first request."""
        hour = int(since_s // HOUR_S)
        return self.total, self.hours.setdefault(hour, Tally())


class Shelf(Protocol):
    """Where a replay keeps entries."""

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """The first of `keys`, deepest first, that is kept."""

    def put(self, entry: Entry, now: float) -> bool:
        """Keep `entry`; others go for it. ``False``: it is not worth that."""

    def hit(self, entry: Entry, now: float) -> None:
        """`entry` was used."""

    @property
    def kept(self) -> int:
        """Entries kept."""

    @property
    def evictions(self) -> int:
        """Entries that went so far."""


def replay(
    requests: Iterable[Request],
    policy: Policy,
    admission: Admission,
    budget_states: int | None,
    shelf: Shelf | None = None,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """What `policy` and `admission` make of `requests`, which come ordered by time.

    >>> from statestore.eviction import make_policy
    >>> from statestore.simulate import Request, make_admission
    >>> document = tuple(StateKey(bytes([place]) * 32, 512 * place) for place in range(1, 9))
    >>> requests = [Request(10.0 * i, 4100, document) for i in range(4)]
    >>> result = replay(requests, make_policy(), make_admission("end"), budget_states=10)
    >>> result.total.hit_tokens, result.total.states_written
    (12288, 1)

    Args:
        requests: see `trace`.
        policy: a new one: it learns.
        admission: a new one: it remembers what it saw.
        budget_states: states of equal size that fit; ``None``: all.
        shelf: where entries are kept, if not in this replay's own memory.
        progress: is told, now and then, how many more requests were replayed.
    """
    shelf = shelf or OwnShelf(policy, budget_states)
    result = Result(policy.name, admission.name, budget_states)
    began: float | None = None
    unreported = 0
    for request in requests:
        began = request.time_s if began is None else began
        since_s = request.time_s - began
        evicted = shelf.evictions
        found, written = _serve(request, BEGAN + since_s, shelf, admission)
        for tally in result.tallies(since_s):
            tally.requests += 1
            tally.input_tokens += request.n_tokens
            tally.hit_tokens += found
            tally.states_written += written
            tally.evictions += shelf.evictions - evicted
        unreported += 1
        if progress is not None and unreported == REPORTED:
            progress(unreported)
            unreported = 0
    if progress is not None and unreported:
        progress(unreported)
    result.states_kept = shelf.kept
    return result


def _serve(request: Request, now: float, shelf: Shelf, admission: Admission) -> tuple[int, int]:
    """One request: tokens found, states stored."""
    keys = tuple(request.keys)
    if not keys:
        return 0, 0
    entry = shelf.longest(keys[::-1], now)
    tokens = 0 if entry is None else entry.key.n_tokens
    depth = 0 if entry is None else keys.index(entry.key) + 1
    if entry is not None:
        shelf.hit(entry, now)
    written = 0
    ancestor = tokens
    for place, role in admission.stored(keys, depth, request.segments):
        key = keys[place]
        written += shelf.put(an_entry(key, role, ancestor, now), now)
        if role is not Role.SPARSE:  # such a one goes first and spares nobody its gain
            ancestor = key.n_tokens
    return tokens, written


def an_entry(key: StateKey, role: Role, ancestor_tokens: int, now: float) -> Entry:
    """The entry of a state of one byte."""
    return Entry(
        key=key,
        namespace="default",
        fingerprint=_NOTHING,
        token_digest=_NOTHING,
        schema_id="simulated",
        role=role,
        blob=key.hex,
        blob_bytes=1,
        state_bytes=1,
        has_output=False,
        cost_s=0.0,
        created_at=now,
        used_at=now,
        ancestor_tokens=ancestor_tokens,
    )
