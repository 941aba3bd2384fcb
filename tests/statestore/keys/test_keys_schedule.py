"""The schedule against a naive oracle, and the promise that it only looks forward."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.errors import InputError, PromptError
from statestore.keys import Boundary, ChunkRule, Role, schedule

lengths = st.lists(st.integers(0, 70), min_size=1, max_size=8)
prompts = lengths.filter(any)


@st.composite
def rules(draw: st.DrawFn) -> ChunkRule:
    chunk = draw(st.integers(1, 20))
    return ChunkRule(chunk, draw(st.integers(1, chunk)), draw(st.integers(1, 4)))


def naive(segments: list[int], rule: ChunkRule) -> tuple[list[int], list[Boundary]]:
    """Token by token, as the words of the design have it."""
    ends: list[int] = []
    per_segment: list[list[int]] = []
    position = held = 0
    for length in segments:
        closed: list[int] = []
        for token in range(length):
            position += 1
            held += 1
            last_of_segment = token == length - 1
            if held == rule.chunk or (last_of_segment and held >= rule.min_chunk):
                closed.append(position)
                held = 0
        ends += closed
        per_segment.append(closed)
    if held:
        ends.append(position)
    boundaries: list[Boundary] = []
    for i, closed in enumerate(per_segment):
        for number, end in enumerate(closed, start=1):
            if number == len(closed):
                boundaries.append(Boundary(end, Role.SEGMENT, True, i))
            elif number % rule.stride == 0:
                boundaries.append(Boundary(end, Role.SPARSE, True, i))
    last = max(i for i, length in enumerate(segments) if length)
    boundaries = [b for b in boundaries if b.position < position]
    boundaries.append(Boundary(position, Role.PROMPT, not held, last))
    return ends, boundaries


@given(prompts, rules())
def test_it_is_the_schedule_of_the_design(segments: list[int], rule: ChunkRule) -> None:
    cut = schedule(segments, rule)
    ends, boundaries = naive(segments, rule)
    assert list(cut.ends) == ends
    assert list(cut.boundaries) == boundaries


@given(prompts, rules())
def test_chunks_cover_the_prompt_within_their_bounds(segments: list[int], rule: ChunkRule) -> None:
    ends = schedule(segments, rule).ends
    sizes = [end - begin for begin, end in zip((0, *ends), ends, strict=False)]
    assert sum(sizes) == sum(segments)
    assert all(0 < size <= rule.chunk for size in sizes)
    assert all(size >= rule.min_chunk for size in sizes[:-1])


@given(prompts, lengths, rules())
def test_what_follows_never_moves_what_came_before(
    segments: list[int], more: list[int], rule: ChunkRule
) -> None:
    short, long = schedule(segments, rule), schedule(segments + more, rule)
    stable_ends = short.ends if short.boundaries[-1].stable else short.ends[:-1]
    assert long.ends[: len(stable_ends)] == stable_ends
    later = {b.position: b for b in long.boundaries}
    for boundary in short.boundaries:
        if boundary.stable:
            assert later[boundary.position].stable
            assert later[boundary.position].segment == boundary.segment


@given(prompts, rules(), st.lists(st.integers(0, 8), max_size=4))
def test_empty_segments_add_nothing(
    segments: list[int], rule: ChunkRule, places: list[int]
) -> None:
    padded = list(segments)
    for place in places:
        padded.insert(min(place, len(padded)), 0)
    plain, with_empty = schedule(segments, rule), schedule(padded, rule)
    assert with_empty.ends == plain.ends
    assert [(b.position, b.role, b.stable) for b in with_empty.boundaries] == [
        (b.position, b.role, b.stable) for b in plain.boundaries
    ]
    assert all(padded[b.segment] for b in with_empty.boundaries)


@given(prompts, rules())
def test_every_boundary_is_a_chunk_end_and_the_prompt_ends_on_one(
    segments: list[int], rule: ChunkRule
) -> None:
    cut = schedule(segments, rule)
    positions = [b.position for b in cut.boundaries]
    assert positions == sorted(set(positions))
    assert set(positions) <= set(cut.ends)
    assert [b.role for b in cut.boundaries].count(Role.PROMPT) == 1
    assert cut.boundaries[-1].position == sum(segments)


def test_a_document_with_a_short_rest_is_found_under_a_question() -> None:
    rule = ChunkRule()
    document = 2 * 256 + 10
    alone = schedule([document], rule)
    assert alone.ends == (256, 512, 522)
    assert alone.boundaries == (
        Boundary(512, Role.SEGMENT, True, 0),
        Boundary(522, Role.PROMPT, False, 0),
    )
    asked = schedule([document, 40], rule)
    assert asked.ends == (256, 512, 562)
    assert asked.boundaries == (
        Boundary(512, Role.SEGMENT, True, 0),
        Boundary(562, Role.PROMPT, True, 1),
    )


def test_the_worked_example_of_the_module() -> None:
    assert schedule([600, 10, 300], ChunkRule()).ends == (256, 512, 600, 856, 910)


def test_sparse_boundaries_stand_along_a_long_segment() -> None:
    cut = schedule([256 * 40], ChunkRule(stride=16))
    assert [(b.position // 256, b.role) for b in cut.boundaries] == [
        (16, Role.SPARSE),
        (32, Role.SPARSE),
        (40, Role.PROMPT),
    ]


def test_a_million_tokens_are_four_thousand_chunks() -> None:
    assert len(schedule([1_000_000], ChunkRule()).ends) == 3907


@pytest.mark.parametrize("segments", [[], [0], [0, 0, 0]])
def test_an_empty_prompt_is_refused(segments: list[int]) -> None:
    with pytest.raises(PromptError, match="empty"):
        schedule(segments, ChunkRule())


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[3, -1\]"):
        schedule([3, -1], ChunkRule())


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"chunk": 0}, "chunk is a count"),
        ({"chunk": 8, "min_chunk": 9}, "min_chunk 9 is larger than chunk 8"),
        ({"min_chunk": 0}, "min_chunk"),
        ({"stride": 0}, "stride"),
        ({"chunk": True}, "True"),
        ({"chunk": 256.0}, "256.0"),
    ],
)
def test_a_rule_without_sense_is_refused(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ChunkRule(**wrong)
