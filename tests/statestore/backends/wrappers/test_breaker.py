"""The circuit breaker, by a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from statestore.backends.wrappers.breaker import JITTER, Breaker, Circuit, Pauses

PAUSES = Pauses(first_s=1.0, longest_s=8.0)


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def a_breaker(clock: Clock, chance: float = 0.5) -> Breaker:
    return Breaker(PAUSES, clock=clock, chance=lambda: chance)


def fail(breaker: Breaker) -> None:
    ticket = breaker.enter() or breaker.probe()
    assert ticket is not None
    assert breaker.failed(ticket)


def test_closed_it_lets_everything_in() -> None:
    breaker = a_breaker(Clock())
    assert breaker.circuit is Circuit.CLOSED
    assert breaker.enter() == breaker.enter() is not None
    assert breaker.probe() is None
    assert breaker.remaining_s == 0.0


def test_open_it_lets_nothing_in_until_the_pause_is_over() -> None:
    clock = Clock()
    breaker = a_breaker(clock)
    fail(breaker)
    clock.now += 0.999
    assert breaker.circuit is Circuit.OPEN
    assert (breaker.enter(), breaker.probe()) == (None, None)
    assert breaker.remaining_s == pytest.approx(0.001)
    clock.now += 0.001
    assert breaker.enter() is None
    assert breaker.probe() is not None


def test_one_probe_decides() -> None:
    clock = Clock()
    breaker = a_breaker(clock)
    fail(breaker)
    clock.now += 1.0
    ticket = breaker.probe()
    assert ticket is not None
    assert breaker.circuit is Circuit.HALF_OPEN
    assert (breaker.enter(), breaker.probe()) == (None, None)
    assert breaker.succeeded(ticket)
    assert breaker.circuit is Circuit.CLOSED


def test_pauses_double_up_to_the_longest() -> None:
    clock = Clock()
    breaker = a_breaker(clock)
    pauses = []
    for _ in range(6):
        fail(breaker)
        pauses.append(breaker.remaining_s)
        clock.now += breaker.remaining_s
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


@pytest.mark.parametrize(("chance", "pause_s"), [(0.0, 1 - JITTER), (1.0, 1 + JITTER)])
def test_a_pause_is_jittered(chance: float, pause_s: float) -> None:
    breaker = a_breaker(Clock(), chance)
    fail(breaker)
    assert breaker.remaining_s == pytest.approx(pause_s)


def test_what_a_call_from_before_says_does_not_count() -> None:
    clock = Clock()
    breaker = a_breaker(clock)
    old = breaker.enter()
    assert old is not None
    fail(breaker)
    assert not breaker.failed(old)
    clock.now += 1.0
    ticket = breaker.probe()
    assert ticket is not None
    assert not breaker.succeeded(old)
    assert not breaker.failed(old)
    assert breaker.succeeded(ticket)
    assert not breaker.failed(old), "it failed before the place came back"
    assert breaker.circuit is Circuit.CLOSED


@pytest.mark.parametrize(("well_s", "pause_s"), [(1.9, 4.0), (2.0, 1.0)])
def test_a_place_that_fails_again_soon_waits_longer(well_s: float, pause_s: float) -> None:
    clock = Clock()
    breaker = a_breaker(clock)
    for _ in range(2):
        fail(breaker)
        clock.now += breaker.remaining_s
    ticket = breaker.probe()
    assert ticket is not None
    breaker.succeeded(ticket)  # after a pause of 2 s
    clock.now += well_s
    fail(breaker)
    assert breaker.remaining_s == pytest.approx(pause_s)


def test_in_doubt_it_asks_at_once() -> None:
    clock = Clock()
    breaker = a_breaker(clock)
    ticket = breaker.enter()
    assert ticket is not None
    assert breaker.doubted(ticket)
    assert breaker.enter() is None
    assert breaker.remaining_s == 0.0
    probe = breaker.probe()
    assert probe is not None
    assert breaker.failed(probe)
    assert breaker.remaining_s == 1.0
    assert not breaker.doubted(probe), "an open one is in no doubt"
    assert breaker.remaining_s == 1.0


def test_a_probe_that_says_nothing_leaves_it_to_another() -> None:
    clock = Clock()
    breaker = a_breaker(clock)
    fail(breaker)
    clock.now += 1.0
    ticket = breaker.probe()
    assert ticket is not None
    breaker.returned(ticket)
    assert breaker.circuit is Circuit.OPEN
    assert breaker.probe() is not None


class AnyOrder(RuleBasedStateMachine):
    """Calls that begin and end in any order: the rules of the module's picture hold."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.chance = 0.5
        self.breaker = Breaker(PAUSES, clock=self.clock, chance=lambda: self.chance)
        self.calls: list[tuple[int, str]] = []  # ticket, the circuit it came in by
        self.since = 0  # changes so far
        self.begun: dict[int, int] = {}  # ticket -> changes when it was given

    @initialize(chance=st.floats(0.0, 1.0))
    def draw(self, chance: float) -> None:
        self.chance = chance

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def enter(self) -> None:
        closed = self.breaker.circuit is Circuit.CLOSED
        ticket = self.breaker.enter()
        assert (ticket is not None) == closed
        if ticket is not None:
            self.calls.append((ticket, "entered"))
            self.begun[ticket] = self.since

    @rule()
    def probe(self) -> None:
        due = self.breaker.circuit is Circuit.OPEN and self.breaker.remaining_s == 0.0
        ticket = self.breaker.probe()
        assert (ticket is not None) == due
        if ticket is not None:
            self.since += 1
            assert all(known != ticket for known, _ in self.calls), "one probe at a time"
            self.calls.append((ticket, "probe"))
            self.begun[ticket] = self.since

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), verdict=st.sampled_from(["succeeded", "failed", "doubted", "returned"]))
    def end(self, data: st.DataObject, verdict: str) -> None:
        ticket, came = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        before = self.breaker.circuit
        current = self.begun[ticket] == self.since
        changed = bool(getattr(self.breaker, verdict)(ticket))
        after = self.breaker.circuit
        if not current:
            assert after is before, "a call from before a change counts for nothing"
            assert not changed
        elif verdict == "failed":
            assert after is Circuit.OPEN
            assert changed
            assert 0.79 < self.breaker.remaining_s < 8.01 * (1 + JITTER)
        elif verdict == "succeeded":
            assert after is Circuit.CLOSED
            assert changed == (came == "probe")
        elif verdict == "doubted":
            assert after is (Circuit.OPEN if came == "entered" else Circuit.HALF_OPEN)
            if after is Circuit.HALF_OPEN:
                self.calls.append((ticket, came))  # its verdict is still to come
        else:
            assert after is (Circuit.CLOSED if came == "entered" else Circuit.OPEN)
        self.since += after is not before

    @invariant()
    def half_open_means_that_a_probe_is_on_its_way(self) -> None:
        probing = any(
            came == "probe" and self.begun[ticket] == self.since for ticket, came in self.calls
        )
        assert (self.breaker.circuit is Circuit.HALF_OPEN) == probing


AnyOrder.TestCase.settings = settings(max_examples=60)
TestAnyOrder = AnyOrder.TestCase
