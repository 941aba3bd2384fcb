"""Where a prompt parts from earlier ones, by the prefixes its store has seen: the rule of second
sight.

A prompt that must compute more than a state is worth asks how far it was seen before; what is new
in it is noted behind its answer. A prompt that is found, or nearly, asks nothing.

Nobody waits for the answer before there is something to compute: a place that takes a round trip is
asked on another thread, while the reading takes its first turn. An index in this process answers
sooner than that, and is asked directly.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, TypeVar

from rwkv_runtime.session.admission import Admission
from statestore.backends.sightings import Unfailing, sightings_of
from statestore.backends.wrappers.deadline import Threads
from statestore.errors import BackendError
from statestore.keys import KeyedBoundary, Namespace, Plan, fork_at, fork_place, marks
from statestore.store import StateStore

T = TypeVar("T")

#: Seconds that an answer is waited for at most; places with deadlines of their own take less.
_PATIENCE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a prompt before it is computed."""

    fork: KeyedBoundary | None = None  # the deepest chunk end that it shares with one before it
    unseen: tuple[bytes, ...] = ()  # marks to note


class Look:
    """A question under way. For one thread at a time.

    Args:
        tell: returns the answer; called once.
        ready: whether it does so without waiting.
    """

    def __init__(self, tell: Callable[[], Sight], *, ready: bool) -> None:
        self._tell = tell
        self.ready = ready

    @cached_property
    def sight(self) -> Sight:
        """The answer, which may be waited for."""
        return self._tell()

    @property
    def at_hand(self) -> KeyedBoundary | None:
        """The fork, if there is one and it is known without waiting."""
        return self.sight.fork if self.ready else None

    @property
    def notable(self) -> bool:
        """Whether there may be something to note."""
        return not self.ready or bool(self.sight.unseen)

    def revised(self, rule: Callable[[KeyedBoundary], T]) -> Callable[[], T | None] | None:
        """A function that waits for the answer and applies `rule` to the fork, or returns ``None``
        where there is none. ``None`` instead of the function: the answer was at hand.
        """
        if self.ready:
            return None
        return lambda: None if (fork := self.sight.fork) is None else rule(fork)


#: Of a prompt that asks nothing.
NOTHING: Final = Look(Sight, ready=True)


class Forks:
    """The index of `store`, or one of this process. Never raises because of the store. Safe to use
    from several threads, and from a forked child.
    """

    def __init__(self, store: StateStore | None, admission: Admission) -> None:
        self._admission = admission
        self._index = (
            Unfailing(sightings_of(store.backend), store.metrics)
            if store is not None and admission.forks
            else None
        )
        self._threads = self._beside()

    def look(self, plan: Plan, beyond: int, namespace: Namespace) -> Look:
        """Ask what is known of `plan`, whose first `beyond` tokens need not be computed."""
        too_little = plan.n_tokens - beyond < self._admission.gain_tokens
        if self._index is None or too_little:
            return NOTHING
        keys = plan.stable_behind(0)
        found = len(keys) - len(plan.stable_behind(beyond))
        unknown = tuple(marks([key.digest for key in keys], found))
        sight = partial(_sight, plan, namespace, found, unknown, partial(self._index.seen, unknown))
        if self._index.shared and unknown and (answer := self._ask(sight)) is not None:
            return Look(partial(_in_time, answer, Sight(unseen=unknown)), ready=False)
        return Look(sight, ready=True)

    def note(self, look: Look) -> None:
        """A prompt was read; behind its answer."""
        if self._index is not None and look.sight.unseen:
            self._index.note(look.sight.unseen)

    def close(self) -> None:
        """Let the threads end; from now on callers of `look` wait for the answer."""
        self._threads[1].end()

    def _ask(self, work: Callable[[], Sight]) -> Callable[[float], Sight] | None:
        """Do `work` on another thread; returns what waits for its result. ``None``: there is no
        thread.
        """
        if self._threads[0] != os.getpid():  # a forked child has none of its parent's
            self._threads = self._beside()
        try:
            return self._threads[1].begin("look", work)
        except BackendError:  # closed, or the system gives no more
            return None

    @staticmethod
    def _beside() -> tuple[int, Threads]:
        return os.getpid(), Threads("the index of seen prefixes")


def _in_time(answer: Callable[[float], Sight], otherwise: Sight) -> Sight:
    """The answer, or `otherwise` if it is late: then something is computed once more than
    necessary.
    """
    try:
        return answer(_PATIENCE_S)
    except BackendError:
        return otherwise


def _sight(
    plan: Plan,
    namespace: Namespace,
    found: int,
    unknown: tuple[bytes, ...],
    seen: Callable[[], int],
) -> Sight:
    """What follows from how many of the `unknown` chunk ends, behind the `found` ones, were
    seen.
    """
    count, ends = seen() if unknown else 0, plan.stable_behind(0)
    end = len(ends) - 1 if plan.boundaries[-1].stable else len(ends)
    place = fork_place(found + count, found, end)
    fork = None if place is None else fork_at(plan, ends[place], namespace)
    return Sight(fork, unknown[count:])
