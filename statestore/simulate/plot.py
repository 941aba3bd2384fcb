"""Tokens found over the budget as a picture: an SVG file, one line for each policy and admission.

Budgets are on a logarithmic axis; a replay without a budget is drawn at the right edge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from statestore.simulate.replay import Result

WIDTH: Final = 800
HEIGHT: Final = 450
_LEFT: Final = 60.0
_RIGHT: Final = 560.0
_TOP: Final = 20.0
_BOTTOM: Final = 400.0
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")

_Points = Sequence[tuple[float, float]]  # pixels


def plot(results: Sequence[Result]) -> str:
    """The picture of `results`, as the text of an SVG file."""
    budgets = sorted({r.budget_states for r in results if r.budget_states is not None})
    places = _places(budgets)
    highest = _ceiling(max((r.hit_token_share for r in results), default=0.0))
    lines = "\n".join(
        part
        for number, (name, points) in enumerate(_series(results, places, highest).items())
        for part in _line(number, name, points)
    )
    axes = "\n".join([*_across(places), *_up(highest)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{axes}\n{lines}\n</svg>\n'
    )


def _places(budgets: Sequence[int]) -> dict[int | None, float]:
    """How far right each budget lies."""
    if not budgets:
        return {None: _RIGHT}
    low, high = math.log(budgets[0]), math.log(budgets[-1])
    span = (_RIGHT - 60.0 - _LEFT - 30.0) / max(high - low, 1e-9)
    places: dict[int | None, float] = {
        budget: _LEFT + 30.0 + span * (math.log(budget) - low) for budget in budgets
    }
    return {**places, None: _RIGHT}


def _ceiling(share: float) -> float:
    """The top of the axis: a multiple of 5 %."""
    return max(math.ceil(share * 20.0), 1) / 20.0


def _series(
    results: Sequence[Result], places: Mapping[int | None, float], highest: float
) -> dict[str, _Points]:
    found: dict[str, list[tuple[float, float]]] = {}
    for result in results:
        height = (_BOTTOM - _TOP) * result.hit_token_share / highest
        point = (places[result.budget_states], _BOTTOM - height)
        found.setdefault(f"{result.policy}, {result.admission}", []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def _line(number: int, name: str, points: _Points) -> Iterator[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
    y = _TOP + 10.0 + 18.0 * number
    yield f'<text x="{_RIGHT + 20:.0f}" y="{y:.0f}" fill="{colour}">{escape(name)}</text>'


def _across(places: Mapping[int | None, float]) -> Iterator[str]:
    yield f'<path d="M{_LEFT},{_TOP} V{_BOTTOM} H{_RIGHT}" fill="none" stroke="black"/>'
    for budget, x in places.items():
        name = "unlimited" if budget is None else f"{budget:,}"
        yield f'<text x="{x:.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{name}</text>'
    middle = (_LEFT + _RIGHT) / 2
    yield f'<text x="{middle}" y="{_BOTTOM + 40}" text-anchor="middle">budget in states</text>'


def _up(highest: float) -> Iterator[str]:
    step = 0.05 if highest <= 0.5 else 0.1
    for mark in range(int(highest / step + 1e-9) + 1):
        y = _BOTTOM - (_BOTTOM - _TOP) * mark * step / highest
        yield f'<path d="M{_LEFT},{y:.1f} H{_RIGHT}" stroke="#dddddd"/>'
        text = f"{100 * mark * step:.0f} %"
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
