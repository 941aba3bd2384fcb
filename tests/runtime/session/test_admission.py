"""Which states are kept: the rule, and what a runtime leaves in its store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkv_runtime import Runtime, load_engine
from rwkv_runtime.engines import Engine
from rwkv_runtime.session import keeper
from rwkv_runtime.session.admission import Admission, Candidate, Everything
from rwkv_runtime.session.checkpoints import to_save
from rwkv_runtime.session.pace import UNMEASURED_FETCH_S, UNMEASURED_TOKEN_S, Costs, Pace
from statestore import ChunkRule, Role, StateStore, open_store
from statestore.complaints import Complaints
from statestore.entry import Entry
from statestore.eviction.policy import STOP_S
from statestore.keys import KeyedBoundary, Namespace, Plan, plan

RULE = ChunkRule(chunk=32, min_chunk=8, stride=4)
DOCUMENT = [1 + i % 250 for i in range(400)]
QUESTION = [7, 7, 200, 201]
DEAD = "redis://127.0.0.1:1/0?connect_timeout_s=0.2"


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
        (candidate(gain_tokens=64, reached_tokens=127, left_tokens=1024), False),
        (candidate(gain_tokens=64, reached_tokens=128, left_tokens=1024), True),
        (candidate(gain_tokens=64, reached_tokens=128, left_tokens=2048), False),
        (candidate(gain_tokens=63, reached_tokens=128, left_tokens=1024), False),
        (candidate(gain_tokens=4000, reached_tokens=8191, left_tokens=10**6), False),
        (candidate(gain_tokens=4000, reached_tokens=8192, left_tokens=10**6), True),
        (candidate(gain_tokens=64, reached_tokens=100, left_tokens=7), True),
        (candidate(gain_tokens=1, named=True, reached_tokens=100, left_tokens=800), True),
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


def test_a_documents_end_replaces_its_stops_in_every_tier(engine: Engine, tmp_path: Path) -> None:
    places = [(tmp_path / name).as_uri() for name in ("near", "middle", "home")]
    with open_store(" ".join(places)) as store, Runtime(engine, store) as runtime:
        runtime.prefill([DOCUMENT, QUESTION])
        runtime.flush()
        gone = {"policy": "admission", "reason": "superseded"}
        assert store.metrics.value("evictions_total", **gone) == 3
    for place in places:
        with open_store(place) as store:
            assert [(n_tokens, role) for n_tokens, role, _ in stored(store)] == [
                (400, Role.SEGMENT)
            ]


def test_stops_that_a_dead_tier_may_have_are_told_of_once(
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(keeper, "_complaints", Complaints(keeper.log))
    url = f"memory: {DEAD} {tmp_path.as_uri()}"
    with open_store(url) as store, Runtime(engine, store) as runtime:
        for first in range(3):
            runtime.prefill([[first, *DOCUMENT], QUESTION])
        runtime.flush()
        assert store.metrics.value("errors_total", operation="delete") == 3
    assert caplog.text.count("left stops along a stored segment behind") == 1


@pytest.mark.parametrize("near", ["", "memory: "])
def test_stops_below_a_prompts_end_stay_for_a_while_where_there_is_room(
    engine: Engine, tmp_path: Path, near: str
) -> None:
    """What leaves the prompt half-way begins at one of them; in a full store they have gone."""
    prompt = [number % 200 for number in range(600)]
    parts = prompt[:450] + [7] * 150

    def left(name: str, budget: int) -> tuple[list[Entry], int]:
        url = f"{near}{(tmp_path / name).as_uri()}?budget={budget}"
        with open_store(url) as store, Runtime(engine, store) as runtime:
            runtime.prefill([prompt])
            runtime.flush()
            entries = list(store.list())
            return entries, runtime.prefill([parts]).cached_tokens

    entries, cached = left("roomy", 1 << 30)
    stops = [entry for entry in entries if entry.role is Role.SPARSE]
    assert sorted(stop.key.n_tokens for stop in stops) == [128, 256, 384, 512]
    assert all(stop.expires_at == pytest.approx(stop.created_at + STOP_S, abs=60) for stop in stops)
    assert cached == 384
    entries, cached = left("tight", max(entry.blob_bytes for entry in entries) * 21 // 10)
    assert [entry.role for entry in entries] == [Role.PROMPT]
    assert cached == 0


def test_a_stop_that_a_prompt_came_back_to_stays(engine: Engine, tmp_path: Path) -> None:
    """It passes no longer, also when another prompt's end is stored above it."""
    prompt = [number % 200 for number in range(600)]
    parts = [prompt[:450] + [last] * 150 for last in (7, 8)]
    url = f"{(tmp_path / 'store').as_uri()}?budget=1GiB"
    with open_store(url) as store, Runtime(engine, store) as runtime:
        for one in (prompt, *parts):
            runtime.prefill([one])
            runtime.flush()
        entries = {entry.key.n_tokens: entry for entry in store.list()}
    assert entries[384].role is Role.SPARSE
    assert entries[384].hits > 0
    assert entries[384].expires_at is None
    assert entries[256].expires_at is not None


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


CHAT_RULE = ChunkRule()


def chat_of(messages: int, tokens: int) -> Plan:
    """So many messages, and the prompt that calls for a reply."""
    said = [[1 + (number + i) % 250 for i in range(tokens)] for number in range(messages)]
    return plan([*said, [5] * 4], bytes(32), CHAT_RULE, Namespace())


def kept_of(prompt: Plan, *, fork: KeyedBoundary | None = None, named: int = 0) -> list[int]:
    saved = to_save(prompt, 0, 0, Admission(), Costs(), named, grows=True, fork=fork)
    return [boundary.position for boundary in saved]


@pytest.mark.parametrize("tokens", [43, 400])
def test_a_long_chat_read_cold_is_thinned_out_towards_its_beginning(tokens: int) -> None:
    """Wherever somebody says something else, little more is read again than an eighth of what
    followed; and the next turn begins at the end.
    """
    prompt = chat_of(1000, tokens)
    kept = kept_of(prompt)
    assert kept[-1] == 1000 * tokens
    assert len(kept) < 130
    for message in range(1, 1001):
        turned = message * tokens
        below = max((place for place in kept if place <= turned), default=0)
        again = turned - below
        assert again <= max(64, min((prompt.n_tokens - below) // 8, 4096)) + tokens


def test_chats_that_part_late_keep_the_same_states() -> None:
    """So those who read them at the same time share the reading."""
    long, longer = chat_of(1000, 43), chat_of(1004, 43)
    one, other = set(kept_of(long)), set(kept_of(longer))
    shared = {place for place in one if place < 0.95 * long.n_tokens}
    assert len(shared) > 15
    assert len(shared - other) <= 2


def test_the_first_message_a_document_and_a_fork_of_a_chat_are_kept() -> None:
    prompt = chat_of(1000, 300)
    assert kept_of(prompt)[0] == 300
    assert kept_of(prompt, named=3)[:3] == [300, 600, 900]
    (fork,) = (boundary for boundary in prompt.boundaries if boundary.position == 3000)
    assert 3000 not in kept_of(prompt)
    assert 3000 in kept_of(prompt, fork=fork)


def test_the_document_of_a_question_is_kept_however_short(
    engine: Engine, store: StateStore
) -> None:
    with Runtime(engine, store) as runtime:
        list(runtime.ask("Twenty bytes or more", ["Is this one short?"], max_tokens=1))
        runtime.flush()
    assert [(position, role) for position, role, _ in stored(store)] == [(20, Role.SEGMENT)]
