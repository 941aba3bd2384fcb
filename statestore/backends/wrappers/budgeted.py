"""A backend that keeps within a budget of bytes, and the order in which it evicts.

Room is made before a state is published: where the totals and the new state exceed the high
watermark, the backend evicts down to the low one, in the policy's order. Namespaces may have
budgets of their own, below that of all. Pinned states count and stay; what does not fit beside them
is refused.

**Others write too.** Totals are read from the place and believed for a second, with this process's
puts added as they come. A process that finds totals it cannot account for is not alone: near the
mark it then looks again after every put, and takes back what went over. So a budget is exceeded by
what is just being written, for as long as one eviction takes. A process that is alone near the mark
reads totals every `TRUST_LIMIT` puts.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from statestore.backends.base import (
    Backend,
    Blob,
    Follower,
    NotAtHandError,
    Punctual,
    read_followed,
)
from statestore.backends.headroom import SPARE
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.budget import AT_ONCE, Account, Budget
from statestore.entry import Change, Entry, Evicted, Usage
from statestore.errors import InputError
from statestore.eviction import DEFAULT, Policy, make_policy
from statestore.eviction.policy import STOP_S, transient
from statestore.keys import Namespace, StateKey
from statestore.metrics import Metrics
from statestore.url import StoreURL, duration_s, share, size_bytes

#: Seconds between two looks at the age where nothing else asks for totals.
AGE_FRESH_S: Final = 10.0
#: Evictions in a row that find nothing, after which there is no room.
ATTEMPTS: Final = 4


class Budgeted(Wrapper):
    """`inner`, within `budget`.

    Args:
        inner: the place; closed with this.
        budget: see `Budget`.
        policy: gives the scores.
        ttl_s: seconds after a put when an entry without an expiry of its own expires.
        monotonic: seconds; says how fresh the totals are.
        metrics: counts what goes.
    """

    def __init__(
        self,
        inner: Backend,
        budget: Budget,
        policy: Policy,
        ttl_s: float | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(inner)
        self._punctual = inner if isinstance(inner, Punctual) else None
        self.budget = budget
        self.policy = policy
        self.ttl_s = ttl_s
        self._monotonic = monotonic
        self._metrics = metrics or Metrics()
        self._begin()

    def has_headroom(self, namespace: str) -> bool:
        """Whether every budget that counts has room to spare, by what was known at the last put."""
        accounts = self._accounts_of(namespace)
        return bool(accounts) and all(a.used < SPARE * a.high for a in accounts)

    def longest(self, keys: Sequence[StateKey], now: float) -> Entry | None:
        """As the port says; the policy is told of it."""
        found = self.inner.longest(keys, now)
        self.policy.seen(keys, found, now)
        return found

    def longest_within(self, keys: Sequence[StateKey], now: float, limit_s: float) -> Entry | None:
        """As `longest`; see `Punctual`."""
        found = self._at_hand().longest_within(keys, now, limit_s)
        self.policy.seen(keys, found, now)
        return found

    def read_followed(self, entry: Entry, follower: Follower) -> memoryview | None:
        """See `Arriving`."""
        return read_followed(self.inner, entry, follower)

    def read_within(
        self, entry: Entry, limit_s: float, follower: Follower | None = None
    ) -> memoryview | None:
        """See `Punctual`."""
        return self._at_hand().read_within(entry, limit_s, follower)

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says, with the policy's score and the default expiry.

        Raises:
            FullError: the state is larger than a budget, or than what pinned states leave of it.
        """
        now = max(entry.created_at, entry.used_at)  # of one that comes from elsewhere, its last use
        size = entry.blob_bytes
        accounts = self._accounts_of(entry.namespace)
        for account in accounts:
            account.refuse_larger(entry)
        full = any(account.lacks(size) for account in accounts)
        if full and self.inner.longest([entry.key], now) is not None:
            # nothing goes for what is there already; it may be on no disk yet
            return durable and self.inner.publish(entry, blob, durable=True)
        with ExitStack() as reserved:
            for account in accounts:
                reserved.enter_context(self._reserved(account, size, now))
            verdict = self.policy.put(entry, self._age_now(), now)
            scored = replace(
                entry,
                score=verdict.score,
                memo=entry.memo if verdict.memo is None else verdict.memo,
                expires_at=self._expiry(entry),
            )
            published = self.inner.publish(scored, blob, durable=durable)
            if published:
                for account in accounts:
                    account.note_put(scored)
        if published:
            for account in accounts:
                self._take_back(account, now)
        return published

    def touch(
        self,
        entry: Entry,
        now: float,
        score: float,  # noqa: ARG002 - the policy's
        *,
        memo: str | None = None,  # noqa: ARG002
        expires_at: float | None = None,
    ) -> None:
        """As the port says, with the policy's score and memo. A passing stop that a prompt came
        back to loses its expiry.
        """
        verdict = self.policy.hit(entry, self._age_now(), now)
        if expires_at is None and transient(entry) and _passes(entry, now):
            expires_at = math.inf if self.ttl_s is None else entry.created_at + self.ttl_s
        self.inner.touch(entry, now, verdict.score, memo=verdict.memo, expires_at=expires_at)

    def update(self, key: StateKey, change: Change, *, blob: str | None = None) -> bool:
        """As the port says. A changed pin has the totals read again before the next put."""
        changed = super().update(key, change, blob=blob)
        if change.pinned is not None:
            for account in (*self._namespaces.values(), self._all):
                if account is not None:
                    account.doubt()
        return changed

    def _at_hand(self) -> Punctual:
        if self._punctual is None:
            raise NotAtHandError
        return self._punctual

    def _begin(self) -> None:
        """The state of this process: a forked child makes its own, with locks that nobody holds."""
        self._process = os.getpid()
        self._age = 0.0
        self._age_read_at: float | None = None
        budget = self.budget
        limits = dict(budget.namespaces)
        self._namespaces = {name: Account(budget, limits[name], name) for name in limits}
        self._all = None if budget.total_bytes is None else Account(budget, budget.total_bytes)

    def _accounts_of(self, namespace: str) -> list[Account]:
        if self._process != os.getpid():
            self._begin()
        known = (self._namespaces.get(namespace), self._all)
        return [account for account in known if account is not None]

    def _expiry(self, entry: Entry) -> float | None:
        if entry.expires_at is not None or self.ttl_s is None:
            return entry.expires_at
        return entry.created_at + self.ttl_s

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
    def _reserved(self, account: Account, size: int, now: float) -> Iterator[None]:
        """Hold room for `size` bytes while they are being published."""
        with account.lock:
            if account.due(size, self._monotonic()):
                account.note_read(self._read(account.namespace), self._monotonic())
            if account.lacks(size):
                self._make_room(account, size, now)
            account.promised += size
        try:
            yield
        finally:
            with account.lock:
                account.promised -= size

    def _make_room(self, account: Account, size: int, now: float) -> None:
        """Evict until `size` bytes fit. Raises `FullError` where the states that must stay leave no
        room.
        """
        if account.hopeless(size):
            raise account.full(size)  # nothing goes for what has no place afterwards
        tries = in_vain = 0
        while in_vain < ATTEMPTS:
            target = account.target(size, tries)
            gone = self._evict(account, target, now, "room")
            account.note_gone(gone)
            account.note_read(self._read(account.namespace), self._monotonic(), ours=True)
            if account.used + size <= account.limit:
                return
            # Nothing to evict: there are pins, or another made room and a third has filled it.
            in_vain = in_vain + 1 if gone.entries == 0 else 0
            tries += gone.entries < AT_ONCE  # else it stopped short: nobody took anything
        raise account.full(size)

    def _take_back(self, account: Account, now: float) -> None:
        """After a put near the mark, beside other writers: evict what went over the budget."""
        with account.lock:
            if not account.crowded():
                return
            usage = self._read(account.namespace)
            account.note_read(usage, self._monotonic())
            if usage.blob_bytes > account.limit:
                self._evict(account, int(account.high), now, "excess")
                account.note_read(self._read(account.namespace), self._monotonic(), ours=True)

    def _evict(self, account: Account, to_bytes: int, now: float, reason: str) -> Evicted:
        name, judge = account.namespace, self.policy.judge
        gone = self.inner.evict(to_bytes, now, namespace=name, limit=AT_ONCE, judge=judge)
        counts = (gone.entries, gone.tokens, gone.blob_bytes)
        self._metrics.evicted(self.policy.name, reason, *counts)
        return gone


def _passes(entry: Entry, now: float) -> bool:
    """Whether it expires as a passing stop does."""
    return entry.expires_at is not None and entry.expires_at <= now + STOP_S


#: What the common options of a store's URL are called; see `budgeted`.
OPTIONS: Final = ("budget", "budget.", "high", "low", "policy", "ttl")

_MEMORY_BUDGET: Final = "1GiB"  # of a place that would otherwise grow until the process is killed


def budgeted(inner: Backend, url: StoreURL, metrics: Metrics) -> Backend:
    """`inner` within the budget that the common options of its URL set; `inner` itself where they
    set none.

    Options: ``budget=50GiB``, ``budget.<namespace>=5GiB``, ``policy=`` with a policy's name, and
    ``ttl=7d``. Raises `SettingsError` for a value that means nothing.
    """
    options = dict(url.common)
    if url.scheme == "memory":
        options.setdefault("budget", _MEMORY_BUDGET)
    given = {name: text for name, text in options.items() if name.startswith(OPTIONS)}
    if not given:
        return inner
    try:
        budget = _budget_of(given)
        policy = make_policy(given.get("policy", DEFAULT))
        ttl_s = duration_s(given["ttl"], "ttl") if "ttl" in given else None
    except InputError as error:
        raise url.error(str(error)) from None
    if ttl_s == 0.0:
        raise url.error("ttl: 0 would keep nothing")
    return Budgeted(inner, budget, policy, ttl_s, metrics=metrics)


def _budget_of(options: Mapping[str, str]) -> Budget:
    sizes = {
        name: size_bytes(text, name)
        for name, text in options.items()
        if name.partition(".")[0] == "budget"
    }
    marks = {name: share(options[name], name) for name in ("high", "low") if name in options}
    if marks and not sizes:
        raise InputError(f"{', '.join(marks)}: a share of what? give a budget= as well")
    total = sizes.pop("budget", None)
    limits = {Namespace(name.partition(".")[2]).name: size for name, size in sizes.items()}
    return Budget(total, limits, **marks)
