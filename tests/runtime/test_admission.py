"""Which states are kept: the rule, and what a runtime leaves in its store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.admission import Admission, Candidate, Everything
from rwkv_runtime.engines import Engine
from rwkv_runtime.pace import UNMEASURED_FETCH_S, UNMEASURED_TOKEN_S, Costs, Pace
from statestore import ChunkRule, Role, StateStore, open_store

RULE = ChunkRule(chunk=32, min_chunk=8, stride=4)
DOCUMENT = [1 + i % 250 for i in range(400)]
QUESTION = [7, 7, 200, 201]


def candidate(**fields: object) -> Candidate:
    known = {"transient": False, "gain_tokens": 100, "declared_tokens": 0, "named": False}
    return Candidate(**{**known, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "kept"),
    [
        (candidate(), True),
        (candidate(gain_tokens=63), False),
        (candidate(gain_tokens=64), True),
        (candidate(gain_tokens=1, named=True), True),
        (candidate(gain_tokens=1, declared_tokens=256), True),
        (candidate(gain_tokens=1, declared_tokens=255), False),
        (candidate(gain_tokens=1, transient=True), True),
    ],
)
def test_the_rule(what: Candidate, kept: bool) -> None:
    assert Admission().admits(what, Costs()) is kept
    assert Everything().admits(what, Costs())


def test_what_costs_more_to_fetch_than_to_compute_is_not_kept() -> None:
    fast, slow = Costs(token_s=1e-4, fetch_s=0.05), Costs(token_s=1e-4, fetch_s=0.005)
    assert not Admission().admits(candidate(gain_tokens=400), fast)
    assert Admission().admits(candidate(gain_tokens=400), slow)
    assert Admission().admits(candidate(gain_tokens=400, named=True), fast)


def test_the_pace_is_the_median_and_whole_chunks_count_first() -> None:
    pace = Pace(chunk=100)
    assert pace.costs == Costs(UNMEASURED_TOKEN_S, UNMEASURED_FETCH_S)
    assert pace.chunk_s == 0
    pace.computed(10, 1.0)
    assert pace.costs.token_s == pytest.approx(0.1)
    for seconds in (1.0, 1.0, 50.0, 1.0):  # one was disturbed
        pace.computed(100, seconds)
        pace.fetched(seconds / 10)
    assert pace.costs == Costs(pytest.approx(0.01), pytest.approx(0.1))
    assert pace.chunk_s == pytest.approx(1.0)


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Engine:
    return load_engine(model_path, rule=RULE)


@pytest.fixture
def store(store_url: str) -> Iterator[StateStore]:
    with open_store(store_url) as opened:
        yield opened


def stored(store: StateStore) -> list[tuple[int, Role, int]]:
    """Positions, roles and ancestors."""
    return sorted((e.key.n_tokens, e.role, e.ancestor_tokens) for e in store.list())


def test_a_documents_end_replaces_its_stops_and_a_short_question_leaves_nothing(
    engine: Engine, store: StateStore
) -> None:
    with Runtime(engine, store) as runtime:
        runtime.prefill([DOCUMENT, QUESTION])
        runtime.flush()
        assert stored(store) == [(400, Role.SEGMENT, 0)]
        gone = {"policy": "admission", "reason": "superseded"}
        assert store.metrics.value("evictions_total", **gone) == 3
        assert store.metrics.value("evicted_tokens_total", **gone) == 128 + 256 + 384
        assert runtime.prefill([DOCUMENT, [9, 9, 9]]).cached_tokens == 400
        long = [3] * 300
        runtime.prefill([DOCUMENT, long])
        runtime.flush()
        assert stored(store) == [(400, Role.SEGMENT, 0), (700, Role.PROMPT, 400)]


def test_stops_stay_where_the_reading_ended_and_serve_another(
    engine: Engine, store: StateStore
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done >= 300:
            raise KeyboardInterrupt

    with Runtime(engine, store) as runtime, pytest.raises(KeyboardInterrupt):
        runtime.prefill([DOCUMENT, QUESTION], progress=interrupt)
    assert [position for position, _, _ in stored(store)] == [128, 256]
    with Runtime(engine, store) as runtime:
        assert runtime.prefill([DOCUMENT, QUESTION]).cached_tokens == 256
        runtime.flush()
    assert stored(store) == [(400, Role.SEGMENT, 0)]


def test_a_stop_that_is_pinned_stays(engine: Engine, store: StateStore) -> None:
    class Pinning:
        """Pins the first stop as soon as it is there."""

        def __init__(self) -> None:
            self.pinned = False

        def __call__(self, done: int, total: int) -> None:
            runtime.flush()
            for entry in list(store.list()) if not self.pinned else ():
                self.pinned = store.update(entry.key, pinned=True)

    with Runtime(engine, store) as runtime:
        runtime.prefill([DOCUMENT, QUESTION], progress=Pinning())
        runtime.flush()
    assert [position for position, _, _ in stored(store)] == [128, 400]


def test_what_is_warmed_is_kept_however_short(engine: Engine, store: StateStore) -> None:
    with Runtime(engine, store) as runtime:
        runtime.prefill([QUESTION])
        runtime.flush()
        assert stored(store) == []
        runtime.warm([QUESTION])
        runtime.flush()
        assert stored(store) == [(4, Role.PROMPT, 0)]


def test_the_document_of_a_question_is_kept_however_short(
    engine: Engine, store: StateStore
) -> None:
    with Runtime(engine, store) as runtime:
        list(runtime.ask("Twenty bytes or more", ["Is this one short?"], max_tokens=1))
        runtime.flush()
    assert [(position, role) for position, role, _ in stored(store)] == [(20, Role.SEGMENT)]
