"""A place that fails on command: for tests, and for drills with a store of one's own.

    faulty = Faulty(backend, Fault(("longest", "read"), Delay(0.4), Every(3)))
    with StateStore(Guarded(faulty)) as store:
        ...
        faulty.faults = ()  # healed

A fault names operations, what happens to them, and when. What is called behind it is real.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final, Literal, TypeAlias, get_args

from statestore.backends.base import Backend
from statestore.backends.leases import Leases
from statestore.backends.lookups import Lookups, LookupSums, lookups_of
from statestore.backends.sightings import Sightings, sightings_of
from statestore.backends.wrapper import Wrapper
from statestore.errors import BackendError

OfBackend: TypeAlias = Literal[
    "longest",
    "read",
    "publish",
    "touch",
    "update",
    "delete",
    "entries",
    "departed",
    "usage",
    "evict",
    "sweep",
]
OfLeases: TypeAlias = Literal["acquire", "renew", "release", "wait"]
OfSightings: TypeAlias = Literal["seen", "note"]
OfLookups: TypeAlias = Literal["add", "sums"]
Operation: TypeAlias = OfBackend | OfLeases | OfSightings | OfLookups

OF_BACKEND: Final[tuple[OfBackend, ...]] = get_args(OfBackend)
OF_LEASES: Final[tuple[OfLeases, ...]] = get_args(OfLeases)

Work: TypeAlias = Callable[[], object]

#: Given what would have been called; what it returns is the answer.
Effect: TypeAlias = Callable[[Work], object]
#: Asked at each call of the operation, whether it is struck.
When: TypeAlias = Callable[[], bool]


def always() -> bool:
    """Every call."""
    return True


class Every:
    """Every `n`-th call: of three, the third."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._calls = count(1)

    def __call__(self) -> bool:
        """Whether this call is struck."""
        return next(self._calls) % self._n == 0


class Chance:
    """A share of all calls; the same ones for the same seed and order."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._random = random.Random(seed)  # noqa: S311 - not a secret

    def __call__(self) -> bool:
        """Whether this call is struck."""
        return self._random.random() < self._share


@dataclass(frozen=True, slots=True)
class Fail:
    """The place is not asked; `error` is its answer."""

    error: BackendError

    def __call__(self, _work: Work) -> object:
        """The answer."""
        raise self.error


@dataclass(frozen=True, slots=True)
class Lose:
    """The place does what it is asked, and the answer gets lost on the way."""

    error: BackendError

    def __call__(self, work: Work) -> object:
        """The answer."""
        work()
        raise self.error


@dataclass(frozen=True, slots=True)
class Delay:
    """The place is slow, by so many seconds."""

    seconds: float

    def __call__(self, work: Work) -> object:
        """The answer."""
        time.sleep(self.seconds)
        return work()


@dataclass(frozen=True, slots=True)
class Hang:
    """Nothing comes back until it is `released`; `met` says that a call hangs."""

    released: threading.Event = field(default_factory=threading.Event)
    met: threading.Event = field(default_factory=threading.Event)

    def __call__(self, work: Work) -> object:
        """The answer."""
        self.met.set()
        self.released.wait()
        return work()


@dataclass(frozen=True, slots=True)
class FlipBit:
    """A blob comes back with one bit wrong: this one, counted from its start."""

    bit: int

    def __call__(self, work: Work) -> object:
        """The answer."""
        blob = work()
        if not isinstance(blob, memoryview) or not blob:
            return blob
        changed = bytearray(blob)
        changed[self.bit // 8 % len(changed)] ^= 1 << self.bit % 8
        return memoryview(changed)


@dataclass(frozen=True, slots=True)
class Truncate:
    """A blob comes back cut short, to so many bytes."""

    keep: int

    def __call__(self, work: Work) -> object:
        """The answer."""
        blob = work()
        return blob[: self.keep] if isinstance(blob, memoryview) else blob


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, with what, and when. `FlipBit` and `Truncate` are for ``read`` alone."""

    operations: tuple[Operation, ...]
    effect: Effect
    when: When = always


class Faulty(Wrapper):
    """`inner` with faults. Safe to use from several threads.

    Attributes:
        faults: those in force; may be set at any time. The first is the outermost.
        struck: how many calls of each operation were.
    """

    def __init__(self, inner: Backend, *faults: Fault) -> None:
        super().__init__(inner)
        self.faults: tuple[Fault, ...] = faults
        self.struck: Counter[Operation] = Counter()
        self._lock = threading.Lock()  # guards `struck`
        for operation in OF_BACKEND:
            setattr(self, operation, partial(self.meet, operation, getattr(inner, operation)))

    @property
    def leases(self) -> Leases | None:
        """The leases that the place gives out, with faults."""
        inner = self.inner.leases
        return None if inner is None else _FaultyLeases(inner, self)

    @property
    def sightings(self) -> Sightings | None:
        """The place's index of seen prefixes, with faults."""
        inner = sightings_of(self.inner)
        return None if inner is None else _FaultySightings(inner, self)

    @property
    def lookups(self) -> Lookups | None:
        """The place's tally of lookups, with faults."""
        inner = lookups_of(self.inner)
        return None if inner is None else _FaultyLookups(inner, self)

    def meet(
        self,
        operation: Operation,
        call: Callable[..., Any],
        *arguments: Any,  # noqa: ANN401 - the operation's
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """What becomes of one call."""
        work: Work = partial(call, *arguments, **options)
        due = [fault for fault in self.faults if operation in fault.operations and fault.when()]
        for fault in reversed(due):
            work = partial(fault.effect, work)
        if due:
            with self._lock:
                self.struck[operation] += 1
        return work()


class _FaultyLeases:
    """`inner`, with the faults of `place`."""

    def __init__(self, inner: Leases, place: Faulty) -> None:
        self.acquire = partial(place.meet, "acquire", inner.acquire)
        self.renew = partial(place.meet, "renew", inner.renew)
        self.release = partial(place.meet, "release", inner.release)
        self.wait = partial(place.meet, "wait", inner.wait)


class _FaultySightings:
    """`inner`, with the faults of `place`."""

    def __init__(self, inner: Sightings, place: Faulty) -> None:
        self.seen = partial(place.meet, "seen", inner.seen)
        self.note = partial(place.meet, "note", inner.note)


class _FaultyLookups:
    """`inner`, with the faults of `place`."""

    def __init__(self, inner: Lookups, place: Faulty) -> None:
        self._inner = inner
        self.add: Callable[[Sequence[LookupSums]], None] = partial(place.meet, "add", inner.add)
        self.sums: Callable[..., list[LookupSums]] = partial(place.meet, "sums", inner.sums)

    @property
    def lasting(self) -> bool:
        """As the port says."""
        return self._inner.lasting
