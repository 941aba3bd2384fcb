"""What is learnt of uses by kind and age, and what follows from it for how long to hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.entry import Role
from statestore.eviction.curves import STEPS, Curves, _best, end_of, step_of
from statestore.eviction.strangers import Strangers
from statestore.eviction.trials import Trial
from statestore.eviction.waiting import MOVED, Waiting

A, B = (("a",), ("a", 1)), (("b",), ("b", 1))


def observe(curves: Curves, kind: tuple[tuple[object, ...], ...], age_s: float, used: bool) -> None:
    curves.waited(kind, 0.0, age_s, 1.0)
    if used:
        curves.used(kind, age_s, 1.0)
    curves.ended(1.0)


@given(st.floats(0.0, 1e9))
def test_every_age_falls_on_one_step(age_s: float) -> None:
    step = step_of(age_s)
    assert 0 <= step < STEPS
    assert age_s <= end_of(step) * (1 + 1e-12)
    assert step == 0 or age_s >= end_of(step - 1) * (1 - 1e-12)


@pytest.mark.parametrize(("age_s", "step"), [(math.inf, STEPS - 1), (math.nan, 0), (-math.inf, 0)])
def test_an_age_that_is_none(age_s: float, step: int) -> None:
    assert step_of(age_s) == step
    assert Curves().best(A, age_s) > 0.0


def test_it_is_a_guess_at_first() -> None:
    """Less with every step of age, and the same for all kinds."""
    curves = Curves()
    best = [curves.best(A, 2.0**octave) for octave in range(20)]
    assert best == sorted(best, reverse=True)
    assert best == [curves.best(B, 2.0**octave) for octave in range(20)]
    assert curves.relative(A) == pytest.approx(1.0)


def test_a_finer_kind_begins_with_the_coarser() -> None:
    curves = Curves()
    for _ in range(200):
        observe(curves, A, 10.0, used=True)
        observe(curves, B, 100.0, used=False)
    assert curves.relative(A) > 3.0
    assert curves.relative(B) < 0.3
    assert curves.best(A, 5.0) > 10 * curves.best(B, 5.0)
    unseen = (("a",), ("a", 2))
    assert curves.best(unseen, 5.0) == pytest.approx(curves.best(A, 5.0), rel=0.5)
    assert curves.relative((("c",), ("c", 1))) == pytest.approx(1.0)


def test_what_is_about_to_be_used_is_worth_holding() -> None:
    """Used at 100 s, never before: at 50 s it is worth more than at first, at 1000 s nothing."""
    curves = Curves()
    for _ in range(2000):
        observe(curves, A, 100.0, used=True)
    assert curves.best(A, 1.0) < curves.best(A, 50.0) < curves.best(A, 90.0)
    assert curves.best(A, 1000.0) < curves.best(A, 1.0) / 2


def test_what_was_seen_fades() -> None:
    curves = Curves()
    for _ in range(2000):
        observe(curves, A, 10.0, used=True)
        observe(curves, B, 10.0, used=False)
    assert curves.best(B, 5.0) < curves.best(A, 5.0) / 10
    for _ in range(60_000):
        observe(curves, A, 10.0, used=False)
        observe(curves, B, 10.0, used=True)
    assert curves.best(A, 5.0) < curves.best(B, 5.0) / 2


@given(st.lists(st.floats(1e-9, 10.0), min_size=STEPS, max_size=STEPS))
def test_the_best_is_that_of_all_times_to_hold(rates: list[float]) -> None:
    """Against the definition: for each age every later step to end with, step by step."""
    widths = [2.0, *(end_of(step) - end_of(step - 1) for step in range(1, STEPS - 1))]
    widths.append(widths[-1] * math.sqrt(2.0))
    found = _best(rates)
    for first in range(STEPS):
        left, uses, seconds, best = 1.0, 0.0, 0.0, 0.0
        for rate, width in zip(rates[first:], widths[first:], strict=True):
            chance = -math.expm1(-rate * width)
            uses, seconds = uses + left * chance, seconds + left * chance / rate
            left *= 1.0 - chance
            best = max(best, uses / seconds)
        assert found[first] == pytest.approx(best, rel=1e-6)


def a_trial(began: float) -> Trial:
    trial = Trial(began, Role.PROMPT, 100, 100.0, 0, 0, 100)
    trial.kind = A
    return trial


def test_a_trial_tells_that_it_waits_before_it_ends() -> None:
    """What nobody comes back to is known long before somebody could say that nobody will."""
    curves, told = Curves(), Curves()
    waiting = Waiting(curves)
    for _ in range(50):
        waiting.begin(a_trial(0.0))
        told.waited(A, 0.0, end_of(step_of(1000.0) - 1), 100.0)
        told.ended(100.0)
    waiting.advance(1000.0, most=50)
    for _ in range(50):
        curves.ended(100.0)
    assert curves.best(A, 100.0) == pytest.approx(told.best(A, 100.0))
    assert curves.best(A, 100.0) < Curves().best(A, 100.0) / 2


@pytest.mark.parametrize("looks", [[], [3.0], [1.0, 10.0, 39.0, 40.0]])
def test_a_trial_counts_the_same_however_often_it_was_looked_at(looks: list[float]) -> None:
    curves, told = Curves(), Curves()
    waiting, trial = Waiting(curves), a_trial(5.0)
    waiting.begin(trial)
    for look in looks:
        waiting.advance(5.0 + look)
    waiting.end(trial, 45.0, used=True)
    waiting.end(trial, 50.0, used=True)  # it has ended
    waiting.advance(1e9)
    told.waited(A, 0.0, 40.0, 100.0)
    told.used(A, 40.0, 100.0)
    told.ended(100.0)
    assert [curves.best(A, age) for age in (1.0, 30.0, 40.0, 300.0)] == pytest.approx(
        [told.best(A, age) for age in (1.0, 30.0, 40.0, 300.0)]
    )
    assert len(waiting) == 0


def test_a_stranger_is_counted_from_the_first_look_to_the_last() -> None:
    curves, told = Curves(), Curves()
    strangers = Strangers(curves, 10)
    strangers.meet(b"one", 100.0, A, 7, 110.0)
    strangers.meet(b"one", 100.0, A, 7, 130.0)
    strangers.meet(b"one", 150.0, A, 7, 160.0)  # somebody used it
    told.waited(A, 10.0, 50.0, 7.0)
    told.used(A, 50.0, 7.0)
    told.ended(7.0)
    assert curves.best(A, 20.0) == pytest.approx(told.best(A, 20.0))
    strangers.used(b"one", 150.0, A, 7, 180.0)  # and now this process
    told.waited(A, 10.0, 30.0, 7.0)
    told.used(A, 30.0, 7.0)
    told.ended(7.0)
    assert curves.relative(A) == pytest.approx(told.relative(A))
    assert len(strangers) == 0


def test_strangers_are_bounded() -> None:
    strangers = Strangers(Curves(), 10)
    for number in range(100):
        strangers.meet(b"%d" % number, 0.0, A, 1, 1.0)
    assert len(strangers) == 10


def test_a_night_is_waited_through_in_parts() -> None:
    """Many at once, each over many steps: no call brings in more than so many, and all come in."""
    night, count = 30_000.0, 3 * MOVED + 1
    seen, whole = Curves(), Curves()
    waiting = Waiting(seen)
    for number in range(count):
        waiting.begin(a_trial(number / count))
        whole.waited(a_trial(0.0).kind, 0.0, end_of(step_of(night - 1.0) - 1), a_trial(0.0).tokens)
    held = []
    for _ in range(5):
        waiting.advance(night)
        held.append(sum(seen._of(()).held))
    assert held[0] < held[1] < held[2] < held[3] == held[4]
    assert held[0] == pytest.approx(held[4] * MOVED / count)
    assert seen._of(()).held == pytest.approx(whole._of(()).held)
    assert len(waiting) == count
