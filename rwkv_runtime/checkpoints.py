"""Where along a prompt to save a state. Pure: a plan and a position in, boundaries out.

Today's rule: every boundary that the run itself computes. The ends of declared segments serve
every later prompt that begins with them, the prompt's end serves its repetition, the sparse stops
let another process go on where this one died. Boundaries at or before the position that a run
resumed from are stored already.
"""

from __future__ import annotations

from statestore.keys import KeyedBoundary, Plan


def to_save(plan: Plan, resumed_at: int) -> dict[int, KeyedBoundary]:
    """Boundaries to save, by position, where `resumed_at` tokens have been read already."""
    return {b.position: b for b in plan.boundaries if b.position > resumed_at}
