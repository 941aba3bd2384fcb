"""Where along a prompt to save a state. Pure: a plan and what is known in, boundaries out.

Boundaries at or before the position that a run resumed from are stored already. Of those behind it
`Admission` picks. Stops along a segment are transient, so the state nearest below another is looked
for among the ends of segments and prompts alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from rwkv_runtime.admission import Admission, Candidate
from rwkv_runtime.pace import Costs
from statestore.keys import KeyedBoundary, Plan, Role


def to_save(
    plan: Plan,
    resumed_at: int,
    lasting: int,
    admission: Admission,
    costs: Costs,
    named_segments: int = 0,
    *,
    grows: bool = False,
) -> Iterator[KeyedBoundary]:
    """Boundaries to save, ascending.

    Args:
        plan: of the prompt.
        resumed_at: tokens that have been read already.
        lasting: length of the nearest state at or below that which is no transient stop.
        admission: the rule.
        costs: what computing and fetching take.
        named_segments: so many, from the first on, were asked for by name.
        grows: the next prompt will begin with this one, so the last end that stays is named too.
    """
    last = max((b.position for b in plan.boundaries if b.stable), default=0) if grows else 0
    declared = 0
    for boundary in plan.boundaries:
        stop = boundary.role is Role.SPARSE
        if boundary.position > resumed_at:
            candidate = Candidate(
                transient=stop,
                gain_tokens=boundary.position - lasting,
                declared_tokens=boundary.position - declared if boundary.stable else 0,
                named=boundary.segment < named_segments or boundary.position == last,
            )
            if admission.admits(candidate, costs):
                yield boundary
                lasting = lasting if stop else boundary.position
        declared = declared if stop else boundary.position


def stops_below(plan: Plan, end: KeyedBoundary) -> tuple[KeyedBoundary, ...]:
    """The transient stops below `end` in its segment."""
    return tuple(
        b
        for b in plan.boundaries
        if b.role is Role.SPARSE and b.segment == end.segment and b.position < end.position
    )
