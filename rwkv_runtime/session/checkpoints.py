"""Where along a prompt to save a state. Pure: a plan and what is known in, boundaries out.

Boundaries up to the position that a run resumed from are stored already. Of those behind it,
`Admission` picks. Stops along a segment are transient, so "the nearest state below" means the
nearest end of a segment or a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rwkv_runtime.session.admission import Admission, Candidate
from rwkv_runtime.session.pace import Costs
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
    fork: KeyedBoundary | None = None,
) -> Iterator[KeyedBoundary]:
    """Boundaries to save, ascending.

    Args:
        plan: of the prompt.
        resumed_at: tokens that have been read already.
        lasting: length of the nearest state at or below that which is no transient stop.
        admission: the rule.
        costs: what computing and fetching take.
        named_segments: how many segments, from the first on, were asked for by name.
        grows: the next prompt will begin with this one, so its last stable end counts as named, and
            the ends of messages are thinned out.
        fork: where other prompts part from this one.
    """
    last = max((b.position for b in plan.boundaries if b.stable), default=0) if grows else 0
    declared = 0
    for boundary in _with(plan.boundaries, fork):
        stop = boundary.role is Role.SPARSE
        parts = boundary.role is Role.FORK
        if boundary.position > resumed_at:
            message = grows and boundary.segment > 0
            seen_before = fork is not None and boundary.position == fork.position
            undeclared = parts or message or not boundary.stable
            candidate = Candidate(
                transient=stop,
                gain_tokens=boundary.position - lasting,
                declared_tokens=0 if undeclared else boundary.position - declared,
                named=not parts
                and (boundary.segment < named_segments or boundary.position == last),
                reached_tokens=boundary.position,
                left_tokens=plan.n_tokens - boundary.position if message and not seen_before else 0,
            )
            if admission.admits(candidate, costs):
                yield boundary
                lasting = lasting if stop else boundary.position
        declared = declared if stop or parts else boundary.position


def _with(
    boundaries: Sequence[KeyedBoundary], fork: KeyedBoundary | None
) -> Sequence[KeyedBoundary]:
    """`boundaries` and the fork, which takes the place of a stop, and of nothing else."""
    if fork is None:
        return boundaries
    there = {b.position: b for b in boundaries if b.role is not Role.SPARSE}
    kept = [b for b in boundaries if b.position != fork.position]
    return sorted([*kept, there.get(fork.position, fork)], key=lambda b: b.position)


def stops_below(plan: Plan, end: KeyedBoundary) -> tuple[KeyedBoundary, ...]:
    """The transient stops below `end` in its segment."""
    return tuple(
        b
        for b in plan.boundaries
        if b.role is Role.SPARSE and b.segment == end.segment and b.position < end.position
    )
