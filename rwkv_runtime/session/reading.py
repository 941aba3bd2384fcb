"""One prompt being read: from where it can begin, chunk by chunk, sharing what others compute.

At each state that it is about to save, a reading takes a turn and does as the turn says: it
computes up to there, takes the point that another thread computed, or learns that the state is
stored. A stored state is loaded only where the reading continues from it: a reading that follows
another worker along a document loads one state, not all.

A state goes to the writer only once the turn at the next one is taken, so that whoever has the
state in hand is the one to continue from it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor

from rwkv_runtime.engines import Engine, EngineState
from rwkv_runtime.session.pace import Pace
from statestore.backends.leases import Outcome
from statestore.entry import Entry
from statestore.keys import KeyedBoundary, Plan, Role, StateKey
from statestore.once import Once, Patience, Ruling, Turn

#: Called with (tokens done, tokens to do) of one prefill, counted from where it began to compute.
Progress = Callable[[int, int], None]

R = TypeVar("R")

#: Chunks whose time a lease covers at least.
_LEASED_CHUNKS: Final = 8


@dataclass(frozen=True, slots=True)
class Point:
    """A position along a prompt, and what was computed or loaded there."""

    position: int  # tokens read
    state: EngineState
    output: Tensor | None
    cost_s: float  # seconds that computing up to here took, whenever that was
    lasting: int  # length of the nearest state at or below it that is no transient stop
    entry: Entry | None = None  # what it was loaded from


@dataclass(slots=True)
class Bookmark:
    """The point at the first segment's end, kept from one reading to the next."""

    key: StateKey | None = None
    point: Point | None = None

    def fits(self, plan: Plan) -> Point | None:
        """The point, if it lies on the way of `plan`."""
        on_the_way = any(b.key == self.key for b in plan.boundaries if b.position < plan.n_tokens)
        return self.point if on_the_way else None


@dataclass(frozen=True, slots=True)
class Fresh:
    """A point just computed, to be saved."""

    boundary: KeyedBoundary
    point: Point
    ancestor_tokens: int  # length of the nearest lasting state below it
    turn: Turn[Point] | None  # to end when it is


class Turns(Protocol):
    """Where computing is done, for readings that share a processor. Both methods return once it is
    done.
    """

    def chunk(self, work: Callable[[], R]) -> R:
        """A chunk."""

    def quick(self, work: Callable[[], R]) -> R:
        """Work that takes much less than a chunk, and that somebody with no token yet waits for."""


class AtOnce:
    """`Turns` for a reading that shares with nobody."""

    def chunk(self, work: Callable[[], R]) -> R:
        """See `Turns`."""
        return work()

    def quick(self, work: Callable[[], R]) -> R:
        """See `Turns`."""
        return work()


class Places(Protocol):
    """What a reading needs of its session."""

    engine: Engine
    pace: Pace
    once: Once[Point]
    turns: Turns

    def find(self, plan: Plan, beyond: int) -> Point | None:
        """The deepest stored point behind `beyond` tokens."""

    def save(self, plan: Plan, fresh: Fresh) -> None:
        """Have it stored, behind the answer."""


class Reading:
    """Reads one prompt, once, beginning at `start`.

    Attributes:
        point: how far it has come; in the end the prompt's end.
        computed: tokens that it computed itself.
        used: the entry that was loaded last.
        fresh: a point that was not yet given to `Places.save`; in the end the prompt's end, if that
            is to be saved.
    """

    def __init__(
        self,
        places: Places,
        plan: Plan,
        tokens: Tensor,
        start: Point,
        *,
        progress: Progress | None = None,
        bookmark: Bookmark | None = None,
    ) -> None:
        self.computed = 0
        self.used: Entry | None = None
        self.fresh: Fresh | None = None
        self._places = places
        self._plan = plan
        self._tokens = tokens
        self._start = start.position
        self._progress = progress
        self._bookmark = bookmark or Bookmark()
        self._marked = next((b for b in plan.boundaries if b.role is Role.SEGMENT), None)
        self._stored = start.position  # how far others have stored it, as far as we know
        self._asked_again: set[int] = set()
        self._turn: Turn[Point] | None = None
        self._move(start)

    def run(
        self,
        saved: Iterable[KeyedBoundary],
        *,
        shared: bool,
        revised: Callable[[], Iterable[KeyedBoundary] | None] | None = None,
    ) -> None:
        """Read on to the prompt's end. States at `saved` (ascending) are saved and, if `shared`,
        computed once among all who want them.

        Before anything is computed, `revised` is asked which boundaries are to be saved instead;
        ``None`` leaves them as they are.
        """
        self._saved = {boundary.position: boundary for boundary in saved}
        self._revised = revised
        try:
            if shared:
                self._share()
            self._compute(self._plan.n_tokens)
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """It failed: let others continue from what was computed, without waiting for the rest."""
        if self._turn is not None:
            self._turn.abandon()
        self._hand_over()

    def _share(self) -> None:
        """Advance to the last state to save, together with all who want one of them."""
        while True:
            while (boundary := self._next()) is not None:
                self._reach(boundary)
            if self._revise():
                continue
            if self._stored <= self.point.position:
                return
            self._look()
            if not self._goes_back():
                return

    def _next(self) -> KeyedBoundary | None:
        """The first state to save that nobody has stored yet, as far as we know."""
        known = max(self.point.position, self._stored)
        return next((b for b in self._saved.values() if b.position > known), None)

    def _reach(self, boundary: KeyedBoundary) -> None:
        """Learn where the state at `boundary` is: computed here, by another thread, or in the
        store.
        """
        pace = self._places.pace
        self._turn = turn = self._places.once.join(boundary.key, _LEASED_CHUNKS * pace.chunk_s)
        self._hand_over()
        compute_s = (boundary.position - self._stored) * pace.costs.token_s
        ruling = turn.settle(Patience(compute_s, check=self._report))
        if ruling is Ruling.TAKE:
            assert turn.value is not None
            self._jump(turn.value)
        elif ruling is Ruling.STORED:
            self._stored = boundary.position
        else:
            self._look()
            if self.point.position >= boundary.position:
                turn.end(Outcome.PUBLISHED)
            elif (self._revise() and self._next() != boundary) or self._goes_back(boundary):
                turn.abandon()
            else:
                self._compute(boundary.position)
        self._turn = None

    def _revise(self) -> bool:
        """Take over what `revised` says, once; whether it said anything. Asked as late as possible:
        by then a turn's round trips have passed.
        """
        revised, self._revised = self._revised, None
        saved = None if revised is None else revised()
        if saved is None:
            return False
        self._saved = {boundary.position: boundary for boundary in saved}
        return True

    def _goes_back(self, boundary: KeyedBoundary | None = None) -> bool:
        """Whether a state (below `boundary`) that was said to be stored is missing: its leader
        died, and another may be computing it. Each state is asked for only once more.
        """
        missing = self._next()
        if missing is None or missing == boundary or missing.position in self._asked_again:
            return False
        self._asked_again.add(missing.position)
        return True

    def _look(self) -> None:
        """Continue from a deeper state, if this process has one at hand or one is stored by now."""
        found = self._places.once.held(self._plan.keys_behind(self.point.position))
        found = found or self._places.find(self._plan, self.point.position)
        self._stored = self.point.position if found is None else found.position
        if found is not None:
            self._jump(found)

    def _jump(self, point: Point) -> None:
        self._move(point)
        self._report()

    def _move(self, point: Point) -> None:
        self.point = point
        self.used = point.entry or self.used
        self._stored = max(self._stored, point.position)
        if self._marked is not None and point.position == self._marked.position:
            self._bookmark.key, self._bookmark.point = self._marked.key, point

    def _compute(self, end: int) -> None:
        """Run the chunks up to `end`."""
        ends = self._plan.ends
        for i in range(bisect_right(ends, self.point.position), bisect_right(ends, end)):
            self._hand_over()
            self._move(self._advance(self.point, ends[i]))
            boundary = self._saved.get(ends[i])
            if boundary is not None:
                self._keep(boundary, self._turn if ends[i] == end else None)
            elif self._turn is not None:
                self._turn.renew()
            self._report()

    def _advance(self, point: Point, end: int) -> Point:
        """One chunk, up to `end`."""
        tokens = self._tokens[point.position : end]
        asked = time.perf_counter()
        output, state, seconds = self._places.turns.chunk(partial(self._chunk, tokens, point.state))
        # Others wait for it as long as it takes here; its worth is the computing alone.
        self._places.pace.computed(len(tokens), time.perf_counter() - asked)
        self.computed += len(tokens)
        return Point(end, state, output, point.cost_s + seconds, point.lasting)

    def _chunk(self, tokens: Tensor, state: EngineState) -> tuple[Tensor, EngineState, float]:
        """Compute; output, state and seconds."""
        began = time.perf_counter()
        with torch.inference_mode():
            output, after = self._places.engine.prefill(tokens, state)
        if output.is_cuda:  # it returns before it has computed, and the time is of use
            torch.cuda.synchronize(output.device)
        return output, after, time.perf_counter() - began

    def _keep(self, boundary: KeyedBoundary, turn: Turn[Point] | None) -> None:
        """Have the point that was just reached saved soon; waiting threads of this process get it
        now.
        """
        ancestor = self.point.lasting
        if boundary.role is not Role.SPARSE:
            self._move(replace(self.point, lasting=boundary.position))
        self.fresh = Fresh(boundary, self.point, ancestor, turn)
        if turn is not None:
            turn.give(self.point)
            self._turn = None

    def _hand_over(self) -> None:
        fresh, self.fresh = self.fresh, None
        if fresh is not None:
            self._places.save(self._plan, fresh)

    def _report(self) -> None:
        if self._progress is not None:
            done, whole = self.point.position, self._plan.n_tokens
            self._progress(done - self._start, whole - self._start)
