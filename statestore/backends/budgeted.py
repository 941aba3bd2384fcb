"""A backend that keeps within a budget of bytes, and the order in which it drops what it holds.

Room is made before a state is published: where the totals and the new state come to more than the
high watermark, the backend evicts down to the low one, in the order of the scores that the policy
wrote at put and touch. Namespaces may have budgets of their own, below that of all. Pinned states
count and stay; what does not fit beside them is refused.

**Others write too.** Totals are read from the place and kept for a second; own puts are added as
they come. A process that finds totals it cannot account for is not alone: near the mark it then
looks again behind every put and takes back what went over. So a budget is exceeded by what is just
being written, for as long as one eviction takes. A process that is alone near the mark reads totals
every `TRUST_LIMIT` puts.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from statestore.backends.base import Backend, Blob
from statestore.backends.wrapper import Wrapper
from statestore.entry import Entry, Usage
from statestore.errors import FullError, InputError
from statestore.eviction import Policy

#: Seconds for which totals that were read are believed.
FRESH_S: Final = 1.0
#: Seconds between two looks at the age where nothing else asks for totals.
AGE_FRESH_S: Final = 10.0
#: Puts between two readings of the totals by a process that found itself alone.
TRUST_LIMIT: Final = 16


@dataclass(frozen=True, slots=True)
class Budget:
    """How many blob bytes a backend may hold. Raises `InputError` for what makes no sense."""

    total_bytes: int | None = None
    namespaces: Mapping[str, int] = field(default_factory=dict)  # bytes, by name
    high: float = 1.0  # of a budget: room is made above it
    low: float = 0.98  # of a budget: down to it

    def __post_init__(self) -> None:
        for name, limit in {"in all": self.total_bytes, **self.namespaces}.items():
            if limit is not None and limit < 1:
                raise InputError(f"budget {name}: at least one byte, not {limit}")
        if not 0.0 < self.low <= self.high <= 1.0:
            raise InputError(f"budget: 0 < low {self.low} <= high {self.high} <= 1 does not hold")


class Budgeted(Wrapper):
    """`inner`, within `budget`.

    Args:
        inner: the place; closed with this.
        budget: see `Budget`.
        policy: gives the scores.
        ttl_s: seconds after a put when an entry without an expiry of its own expires.
        monotonic: seconds; says how fresh the totals are.
    """

    def __init__(
        self,
        inner: Backend,
        budget: Budget,
        policy: Policy,
        ttl_s: float | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self.budget = budget
        self.policy = policy
        self._ttl_s = ttl_s
        self._monotonic = monotonic
        self._begin()

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says, with the policy's score and the default expiry.

        Raises:
            FullError: the state is larger than a budget, or than what pinned states leave of it.
        """
        now, size = entry.created_at, entry.blob_bytes
        accounts = self._accounts_of(entry.namespace)
        for account in accounts:
            account.refuse_larger(entry)
        with ExitStack() as reserved:
            for account in accounts:
                reserved.enter_context(self._reserved(account, size, now))
            scored = replace(
                entry,
                score=self.policy.put(entry, self._age_now(), now),
                expires_at=self._expiry(entry),
            )
            published = self.inner.publish(scored, blob, durable=durable)
            if published:
                for account in accounts:
                    account.note_put(size)
        if published:
            for account in accounts:
                self._take_back(account, now)
        return published

    def touch(self, entry: Entry, now: float, score: float) -> None:  # noqa: ARG002 - the policy's
        """As the port says, with the policy's score."""
        self.inner.touch(entry, now, self.policy.hit(entry, self._age_now(), now))

    def _begin(self) -> None:
        """Of this process: a forked child has its own, with locks that nobody holds."""
        self._process = os.getpid()
        self._age = 0.0
        self._age_read_at: float | None = None
        budget = self.budget
        limits = dict(budget.namespaces)
        self._namespaces = {name: _Account(budget, limits[name], name) for name in limits}
        self._all = None if budget.total_bytes is None else _Account(budget, budget.total_bytes)

    def _accounts_of(self, namespace: str) -> list[_Account]:
        if self._process != os.getpid():
            self._begin()
        known = (self._namespaces.get(namespace), self._all)
        return [account for account in known if account is not None]

    def _expiry(self, entry: Entry) -> float | None:
        if entry.expires_at is not None or self._ttl_s is None:
            return entry.expires_at
        return entry.created_at + self._ttl_s

    def _age_now(self) -> float:
        if self._age_read_at is None or self._monotonic() - self._age_read_at > AGE_FRESH_S:
            self._read(None)
        return self._age

    def _read(self, namespace: str | None) -> Usage:
        usage = self.inner.usage(namespace)
        self._age = usage.age
        self._age_read_at = self._monotonic()
        return usage

    @contextmanager
    def _reserved(self, account: _Account, size: int, now: float) -> Iterator[None]:
        """Hold room for `size` bytes until they are published, or are not."""
        with account.lock:
            if account.due(size, self._monotonic()):
                account.note_read(self._read(account.namespace), self._monotonic())
            if account.used + size > account.high:
                self._make_room(account, size, now)
            account.promised += size
        try:
            yield
        finally:
            with account.lock:
                account.promised -= size

    def _make_room(self, account: _Account, size: int, now: float) -> None:
        while True:
            target = account.target(size)
            gone = self.inner.evict(target, now, namespace=account.namespace)
            account.note_read(self._read(account.namespace), self._monotonic(), ours=True)
            if account.used + size <= account.limit:
                return
            if gone.entries == 0:
                raise account.full(size)

    def _take_back(self, account: _Account, now: float) -> None:
        """After a put beside other writers, near the mark: what went over goes."""
        with account.lock:
            if not account.crowded():
                return
            usage = self._read(account.namespace)
            account.note_read(usage, self._monotonic())
            if usage.blob_bytes > account.limit:
                self.inner.evict(int(account.high), now, namespace=account.namespace)
                account.note_read(self._read(account.namespace), self._monotonic(), ours=True)


class _Account:
    """What this process knows of one budget. Its caller holds `lock`."""

    def __init__(self, budget: Budget, limit: int, namespace: str | None = None) -> None:
        self.lock = threading.RLock()
        self.namespace = namespace
        self.limit = limit  # bytes
        self.high = budget.high * limit
        self.promised = 0  # bytes on their way in, by this process
        self._slack = (budget.high - budget.low) * limit
        self._read_bytes = 0
        self._read_pinned = 0
        self._read_at: float | None = None
        self._put_bytes = 0  # published by this process since
        self._trust = 1  # puts

    @property
    def used(self) -> int:
        """Bytes held, as far as is known, and those on their way."""
        return self._read_bytes + self._put_bytes + self.promised

    def due(self, size: int, at: float) -> bool:
        """Whether totals must be read before `size` more bytes."""
        if self._read_at is None or at - self._read_at > FRESH_S:
            return True
        headroom = self.high - self._read_bytes
        return self._put_bytes > max(headroom / TRUST_LIMIT, (self._trust - 1) * size)

    def crowded(self) -> bool:
        """Whether others write here, and there is not much room."""
        return self._trust == 1 and self.used > 0.9 * self.high

    def target(self, size: int) -> int:
        """What to evict down to before `size` bytes: whole states of slack, so that a budget of
        few states is not emptied for it.
        """
        slack = self._slack // size * size if size else self._slack
        return max(int(self.high - slack) - size - self.promised, 0)

    def note_put(self, size: int) -> None:
        """`size` bytes were published; they are promised no longer when their room is let go."""
        with self.lock:
            self._put_bytes += size

    def note_read(self, usage: Usage, at: float, *, ours: bool = False) -> None:
        """Totals were read; `ours`: just after an eviction, when they tell nothing of others."""
        alone = usage.blob_bytes == self._read_bytes + self._put_bytes
        if not ours:
            self._trust = min(2 * self._trust, TRUST_LIMIT) if alone else 1
        self._read_bytes, self._read_pinned = usage.blob_bytes, usage.pinned
        self._read_at, self._put_bytes = at, 0

    def refuse_larger(self, entry: Entry) -> None:
        """Raise `FullError` where `entry` alone is more than the budget."""
        if entry.blob_bytes > self.high:
            raise FullError(
                f"{entry.key}: a state of {entry.blob_bytes} bytes is larger than the budget of "
                f"{self._name}, {self.limit} bytes; raise it"
            )

    def full(self, size: int) -> FullError:
        """What to raise where no eviction makes room."""
        return FullError(
            f"no room for {size} bytes in the budget of {self._name}, {self.limit} bytes: "
            f"{self._read_pinned} pinned states are among the {self._read_bytes} bytes that stay; "
            "unpin some, or raise it"
        )

    @property
    def _name(self) -> str:
        return "the store" if self.namespace is None else f"namespace {self.namespace!r}"
