"""Where prompts part: kept on second sight, found by the third, without a word from the caller."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from rwkv_runtime import Prefill, Runtime, load_engine
from rwkv_runtime.engines import Engine
from rwkv_runtime.session.admission import Admission
from rwkv_runtime.session.checkpoints import to_save
from rwkv_runtime.session.forks import Forks, Sight
from rwkv_runtime.session.pace import Costs
from statestore import ChunkRule, Namespace, Role, StateStore, open_store
from statestore.backends.base import Backend
from statestore.backends.leases import Leases
from statestore.backends.sightings import Sightings, sightings_of
from statestore.backends.wrapper import Wrapper
from statestore.backends.wrappers.faulty import Delay, Fail, Fault, Faulty
from statestore.errors import UnavailableError
from statestore.eviction import make_policy
from statestore.keys import Plan, fork_at, marks, plan
from statestore.simulate import make_admission, read_trace, replay
from tests.places.postgres_servers import PostgresPlace
from tests.places.redis_servers import running
from tests.runtime.session.test_exactness import assert_same_bits
from tests.runtime.workers.commanded import run
from tests.runtime.workers.processes import Profile, Workers

RULE = ChunkRule(chunk=32, min_chunk=8, stride=1 << 20)  # no stops, which would serve as well
STOPS = ChunkRule(chunk=32, min_chunk=8, stride=4)
SHARED = 500  # tokens: 15 chunks, and 20 tokens of the next
LAST = 480  # the last chunk end that those who share them share
BEHIND = [(256, "sparse"), (300, "segment"), (404, "prompt")]
COSTS = Costs(token_s=1.0, fetch_s=0.0)  # everything is worth keeping


def tokens(count: int, seed: int) -> list[int]:
    source = random.Random(seed)
    return [source.randrange(256) for _ in range(count)]


def prompt(number: int, tail: int = 200, shared: int = SHARED) -> list[list[int]]:
    """One segment: what all share, and a tail of its own."""
    return [tokens(shared, 0) + tokens(tail, number)]


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Engine:
    return load_engine(model_path, rule=RULE)


@pytest.fixture
def store(store_url: str) -> Iterator[StateStore]:
    with open_store(store_url) as opened:
        yield opened


def read(engine: Engine, store: StateStore | None, *asked: list[list[int]]) -> list[Prefill]:
    """By a runtime that never measured: nothing is too cheap to be kept."""
    results = []
    for segments in asked:
        with Runtime(engine, store) as runtime:
            results.append(runtime.prefill(segments))
    return results


def kept(store: StateStore) -> set[tuple[int, Role]]:
    return {(entry.key.n_tokens, entry.role) for entry in store.list()}


# Through stores and processes


@pytest.fixture(params=["file", "redis", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield (tmp_path / "store").as_uri()
    elif request.param == "redis":
        with running() as server:
            yield f"{server.url}?find_ms=30000"
    else:
        fleet = PostgresPlace(tmp_path / "fleet")
        yield f"{fleet.url}&find_ms=30000"
        fleet.drop()


def test_the_third_of_three_processes_computes_its_tail_alone(workers: Workers, place: str) -> None:
    """2,000 tokens that nobody declared; each prompt is read by another process, or runtime."""
    profile = Profile("fp32", 1, stride=1 << 20)
    asked = [prompt(number, tail=100, shared=2000) for number in (1, 2, 3)]
    answers = [
        workers(profile, number % 2).prefill(segments, place, all=False)
        for number, segments in enumerate(asked)
    ]
    assert [answer["cached"] for answer in answers] == [0, 0, 2000]
    afresh = workers(profile, 0).prefill(asked[2], None)
    assert_same_bits(answers[2], afresh)
    with open_store(place) as store:
        assert {(2000, Role.FORK), (2100, Role.PROMPT)} == kept(store)


# Beside the reading


class Held(Wrapper):
    """Tells what it saw once somebody has asked for a lease, or `told` is set."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.told = threading.Event()

    @property
    def leases(self) -> Leases | None:
        self.told.set()
        return super().leases

    @property
    def sightings(self) -> Sightings | None:
        return _Waiting(sightings_of(self.inner), self.told)


class _Waiting:
    def __init__(self, inner: Sightings | None, told: threading.Event) -> None:
        assert inner is not None
        self._inner = inner
        self._told = told
        self.note = inner.note

    def seen(self, marks: Sequence[bytes]) -> int:
        assert self._told.wait(60)
        return self._inner.seen(marks)


def test_the_answer_is_waited_for_once_the_first_turn_is_taken(
    engine: Engine, store: StateStore
) -> None:
    """If it were waited for before, the second prompt would give up and keep no fork."""
    for number in (1, 2):
        held = StateStore(Held(store.backend), codec_name="raw")
        read(engine, held, prompt(number))
    assert kept(store) == {(LAST, Role.FORK), (700, Role.PROMPT)}
    (third,) = read(engine, store, prompt(3))
    (afresh,) = read(engine, None, prompt(3))
    assert third.cached_tokens == LAST
    assert third.logits.equal(afresh.logits)


def test_the_turn_at_the_end_is_free_again(engine: Engine, store: StateStore) -> None:
    """The second prompt had it before it knew of the fork, and left it; then it took it anew."""
    read(engine, store, prompt(1), prompt(2))
    assert kept(store) == {(LAST, Role.FORK), (700, Role.PROMPT)}
    end = Runtime(engine, store).session.plan(prompt(2)).keys[-1]
    assert store.leases is not None
    assert store.leases.acquire(end, "somebody", 10.0).owner == "somebody"


def test_who_is_never_told_computes_all(engine: Engine, store: StateStore) -> None:
    read(engine, store, prompt(1))
    held = Held(store.backend)
    forks = Forks(StateStore(held, codec_name="raw"), Admission())
    asked = plan(prompt(2), bytes(32), RULE)
    look = forks.look(asked, 0, Namespace())
    assert not look.ready
    assert look.sight == Sight(None, tuple(marks([key.digest for key in asked.stable_behind(0)])))
    held.told.set()
    forks.close()


@pytest.mark.parametrize("url", ["memory:", "file"])
def test_an_index_of_this_process_is_asked_at_once(url: str, tmp_path: Path) -> None:
    with open_store((tmp_path / "store").as_uri() if url == "file" else url) as store:
        forks, asked = Forks(store, Admission()), plan(prompt(1), bytes(32), RULE)
        assert forks.look(asked, 0, Namespace()).ready == (url == "memory:")
        forks.close()
        look = forks.look(asked, 0, Namespace())
        assert look.ready, "closed, it has no threads"
        assert len(look.sight.unseen) == len(asked.stable_behind(0))


def test_a_forked_child_asks_beside_its_own_reading(tmp_path: Path) -> None:
    with open_store((tmp_path / "store").as_uri()) as store:
        forks = Forks(store, Admission())
        forks.note(forks.look(plan(prompt(1), bytes(32), RULE), 0, Namespace()))
        child = os.fork()
        if child == 0:
            fork = None
            with suppress(BaseException):
                look = forks.look(plan(prompt(2), bytes(32), RULE), 0, Namespace())
                fork = look.sight.fork if not look.ready else None
            os._exit(0 if fork is not None and fork.position == LAST else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        forks.close()


# One process


def test_the_second_keeps_it_and_the_third_begins_there(engine: Engine, store: StateStore) -> None:
    first, second, third, fourth = read(engine, store, *(prompt(n) for n in (1, 2, 3, 3)))
    assert [p.cached_tokens for p in (first, second, third)] == [0, 0, LAST]
    assert fourth.computed_tokens == 0
    assert kept(store) == {(LAST, Role.FORK), (700, Role.PROMPT)}
    (fork,) = [entry for entry in store.list() if entry.role is Role.FORK]
    assert (fork.ancestor_tokens, fork.hits) == (0, 1)
    (afresh,) = read(engine, None, prompt(3))
    assert third.logits.equal(afresh.logits)


def test_forks_of_forks(engine: Engine, store: StateStore) -> None:
    """Prompts that share more among themselves than with the others."""
    family = [[tokens(SHARED, 0) + tokens(300, 1) + tokens(200, n)] for n in (10, 11, 12)]
    results = read(engine, store, prompt(2), prompt(3), *family)
    assert [p.cached_tokens for p in results] == [0, 0, LAST, LAST, 800]
    assert (800, Role.FORK) in kept(store)
    assert next(e for e in store.list() if e.key.n_tokens == 800).ancestor_tokens == LAST


def test_what_is_declared_needs_no_second_sight(engine: Engine, store: StateStore) -> None:
    document = tokens(400, 0)
    asked = [[document, tokens(100, n)] for n in (1, 2)]
    results = read(engine, store, *asked)
    assert [p.cached_tokens for p in results] == [0, 400]
    assert (400, Role.SEGMENT) in kept(store)
    assert not any(role is Role.FORK for _, role in kept(store))


def test_a_fork_is_no_stop_that_the_segments_end_replaces(
    model_path: Path, store: StateStore
) -> None:
    """At 384 a stop would lie as well."""
    engine = load_engine(model_path, rule=STOPS)
    for number in (1, 2):
        segments = [tokens(384, 0) + tokens(300, number), tokens(100, number)]
        (result,) = read(engine, store, segments)
        assert result.cached_tokens == 0
    assert {(384, Role.FORK), (684, Role.SEGMENT)} <= kept(store)
    assert not any(role is Role.SPARSE for _, role in kept(store))


def test_namespaces_have_not_seen_what_others_saw(engine: Engine, store: StateStore) -> None:
    for number in (1, 2, 3):
        space = Namespace(f"tenant{number}", b"%d" % number)
        with Runtime(engine, store, namespace=space) as runtime:
            assert runtime.prefill(prompt(number)).cached_tokens == 0
    assert not any(role is Role.FORK for _, role in kept(store))


def test_a_prompt_that_is_found_asks_nothing(engine: Engine, store: StateStore) -> None:
    store.backend = faulty = Faulty(store.backend, Fault(("seen", "note"), Delay(0.0)))
    document, question = tokens(400, 0), tokens(20, 1)
    read(engine, store, [document])
    assert (faulty.struck["seen"], faulty.struck["note"]) == (1, 1)
    read(engine, store, [document], [document, question], [document, question])
    assert (faulty.struck["seen"], faulty.struck["note"]) == (1, 1)


def test_an_index_that_fails_is_no_failure(engine: Engine, store: StateStore) -> None:
    """What a process has seen itself it knows all the same."""
    fails = Fault(("seen", "note"), Fail(UnavailableError("down")))
    store.backend = Faulty(store.backend, fails)
    with Runtime(engine, store) as runtime:
        for number, cached in ((1, 0), (2, 0), (3, LAST)):
            assert runtime.prefill(prompt(number)).cached_tokens == cached
            runtime.flush()
    assert store.metrics.value("errors_total", operation="seen") == 3


def test_not_looked_for_they_are_not_kept(engine: Engine, store: StateStore) -> None:
    for number in (1, 2, 3):
        with Runtime(engine, store, admission=Admission(forks=False)) as runtime:
            assert runtime.prefill(prompt(number)).cached_tokens == 0


def test_explain_tells_of_it(engine: Engine, store: StateStore) -> None:
    read(engine, store, prompt(1), prompt(2))
    with Runtime(engine, store) as runtime:
        told = {v.boundary.position: v for v in runtime.explain(prompt(3))}
    assert {position for position, verdict in told.items() if verdict.found} == {LAST}
    assert told[LAST].boundary.role is Role.FORK
    assert 700 in told


# The rule


def planned(*lengths: int) -> Plan:
    return plan([tokens(length, n) for n, length in enumerate(lengths)], bytes(32), STOPS)


def saved(made: Plan, position: int | None, resumed_at: int = 0) -> list[tuple[int, Role]]:
    key = next((key for key in made.keys if key.n_tokens == position), None)
    fork = None if key is None else fork_at(made, key)
    found = to_save(made, resumed_at, resumed_at, Admission(), COSTS, fork=fork)
    return [(boundary.position, boundary.role) for boundary in found]


@pytest.mark.parametrize(
    ("position", "resumed_at", "expected"),
    [
        (None, 0, [(128, "sparse"), *BEHIND]),
        (64, 0, [(64, "fork"), (128, "sparse"), *BEHIND]),
        (128, 0, [(128, "fork"), *BEHIND]),
        (300, 0, [(128, "sparse"), *BEHIND]),
        (32, 0, [(128, "sparse"), *BEHIND]),  # spares too little
        (364, 300, [(364, "fork")]),  # and leaves too little for the end to spare
        (332, 300, [(404, "prompt")]),
    ],
)
def test_a_fork_among_the_boundaries(
    position: int | None, resumed_at: int, expected: list[tuple[int, str]]
) -> None:
    assert saved(planned(300, 104), position, resumed_at) == expected


# The access log


def test_each_prompt_leaves_a_line_that_tells_no_token(
    engine: Engine, store: StateStore, tmp_path: Path
) -> None:
    path = tmp_path / "access.jsonl"
    with Runtime(engine, store, access_log=path) as runtime:
        results = [runtime.prefill(prompt(n)) for n in (1, 1)]
        results.append(runtime.prefill([tokens(300, 5), tokens(84, 6)]))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["cached"] for line in lines] == [p.cached_tokens for p in results]
    assert [line["tokens"] for line in lines] == [700, 700, 384]
    assert lines[0]["positions"] == [*range(32, 700, 32), 700]
    assert (lines[2]["positions"][-4:], lines[2]["segments"]) == ([300, 332, 364, 384], [300])
    assert [line["stable"] for line in lines] == [True, True, True]
    assert lines[0]["keys"] == lines[1]["keys"]
    assert not set(lines[0]["keys"]) & set(lines[2]["keys"])
    assert all(len(line["keys"]) == len(line["positions"]) for line in lines)
    assert not any(entry.key.hex[:32] in path.read_text() for entry in store.list())


def test_the_simulator_finds_what_was_found(
    engine: Engine, store: StateStore, tmp_path: Path
) -> None:
    path, cached = tmp_path / "access.jsonl", []
    for number in (1, 2, 3, 3, 4):  # by processes that never measured
        with Runtime(engine, store, access_log=path) as runtime:
            cached.append(runtime.prefill(prompt(number)).cached_tokens)
    assert cached == [0, 0, LAST, 700, LAST]
    result = replay(read_trace(path), make_policy(), make_admission(), None)
    assert result.total.hit_tokens == sum(cached)
    assert result.total.input_tokens == 3500
    assert result.states_kept == len(list(store.list()))


def test_a_command_leaves_lines(model_path: Path, store_url: str, tmp_path: Path) -> None:
    path, document = tmp_path / "access.jsonl", tmp_path / "document"
    document.write_text("An owl sat in the old oak. " * 20)
    for _ in range(2):
        done = run(
            "ask", "--model", str(model_path), "--store", store_url, "--access-log", str(path),
            "--document", str(document), "--question", "Where?", "--max-tokens", "1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["cached"], second["cached"]) == (0, 512)
    assert first["segments"] == [512]
    assert first["keys"] == second["keys"]
    assert "owl" not in path.read_text()


def test_without_a_store_there_is_a_line_too(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    with Runtime(engine, None, access_log=path) as runtime:
        runtime.prefill(prompt(1))
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["cached"] == 0
