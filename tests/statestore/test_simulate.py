"""`statestore simulate`: by hand on small traces, by its command, and on a production trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from statestore.errors import InputError
from statestore.eviction import make_policy
from statestore.keys import Role, StateKey
from statestore.simulate import (
    Request,
    make_admission,
    read_trace,
    replay,
    replay_clairvoyant,
)
from statestore.simulate.real import replay_through
from tests.statestore.backend_places import digest
from tests.statestore.test_cli import run

BLOCK = 100


def key(name: str, blocks: int) -> StateKey:
    return StateKey(digest(name), blocks * BLOCK)


def written(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def mooncake(second: float, tokens: int, *blocks: int) -> dict[str, Any]:
    fields = {"timestamp": second * 1000, "input_length": tokens, "output_length": 5}
    return {**fields, "hash_ids": list(blocks)}


SMALL = (
    mooncake(0, 350, 1, 2, 3, 4),  # the fourth block is a part
    mooncake(10, 250, 1, 2, 9),
    mooncake(20, 400, 1, 2, 5, 6),
    mooncake(30, 450, 1, 2, 5, 6, 7),
)


def test_only_full_blocks_are_keys(tmp_path: Path) -> None:
    requests = read_trace(written(tmp_path / "trace", *SMALL), BLOCK)
    assert [len(request.keys) for request in requests] == [3, 2, 4, 4]
    assert [request.n_tokens for request in requests] == [350, 250, 400, 450]
    assert [k.n_tokens for k in requests[0].keys] == [100, 200, 300]
    assert requests[0].keys[:2] == requests[1].keys


def test_by_hand(tmp_path: Path) -> None:
    """1: nothing; 2: its prefix was seen, not stored; 3: 200 tokens; 4: 400."""
    requests = read_trace(written(tmp_path / "trace", *SMALL), BLOCK)
    result = replay(requests, make_policy(), make_admission("end"), None)
    assert (result.total.hit_tokens, result.total.input_tokens) == (600, 1450)
    assert (result.total.states_written, result.states_kept) == (3, 3)
    every = replay(requests, make_policy(), make_admission("every"), None)
    assert (every.total.hit_tokens, every.states_kept) == (800, 5)


def test_a_fork_is_stored_at_second_sight() -> None:
    admission = make_admission("end+fork")
    stem = [key("a", 1), key("ab", 2)]
    assert admission.stored([*stem, key("abc", 3)], 0) == [(2, Role.PROMPT)]
    wanted = [(1, Role.FORK), (3, Role.PROMPT)]
    assert admission.stored([*stem, key("abd", 3), key("abde", 4)], 0) == wanted
    assert admission.stored([*stem, key("abf", 3)], 2) == [(2, Role.PROMPT)]
    assert admission.stored(stem, 2) == []


def test_sparse_stops_go_first() -> None:
    keys = tuple(key(f"long {place}", place) for place in range(1, 41))
    prompt = Request(0.0, 4000, keys)
    result = replay([prompt], make_policy(), make_admission("end+fork+sparse"), 2)
    assert result.total.states_written == 3
    again = Request(10.0, 4000, keys)
    result = replay([prompt, again], make_policy(), make_admission("end+fork+sparse"), 2)
    assert result.total.hit_tokens == 4000


def test_hours_add_up() -> None:
    requests = [Request(3000.0 * n, 150, (key(f"{n % 2}", 1),)) for n in range(6)]
    result = replay(requests, make_policy(), make_admission(), None)
    assert len(result.hours) == 5
    assert sum(hour.hit_tokens for hour in result.hours) == result.total.hit_tokens == 400
    assert sum(hour.requests for hour in result.hours) == 6


def test_the_oracle_is_ahead_of_all() -> None:
    """Three prompts in turn, in room for two: who knows the future keeps one of them."""
    requests = [Request(float(n), 200, (key(f"{n % 3}", 2),)) for n in range(30)]
    lru = replay(requests, make_policy("lru"), make_admission(), 2)
    best = replay_clairvoyant(requests, make_admission(), 2)
    assert lru.total.hit_tokens == 0
    assert best.total.hit_tokens >= 13 * 200
    unlimited = replay_clairvoyant(requests, make_admission(), None)
    assert unlimited.total.hit_tokens == 27 * 200


def test_an_access_log(tmp_path: Path) -> None:
    lines = [
        {"time": 7.0, "n_tokens": 150, "keys": [str(key("a", 1))]},
        {"time": 5.0, "n_tokens": 250, "keys": [str(key("a", 1)), str(key("b", 2))]},
    ]
    requests = read_trace(written(tmp_path / "log", *lines))
    assert [request.time_s for request in requests] == [5.0, 7.0]
    assert requests[0].keys == (key("a", 1), key("b", 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no request"),
        ("\n{}\n", "line 2: no request"),
        ("not json\n", "line 1: no request"),
        ('{"hash_ids": [1], "input_length": "many", "timestamp": 0}\n', "line 1"),
        ('{"time": 1, "n_tokens": 5, "keys": ["nonsense"]}\n', "is no state key"),
    ],
)
def test_a_trace_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_trace(path)


def test_the_command(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", *SMALL)
    done = run(
        "simulate", str(trace), "--block-size", "100", "--budget-states", "2", "--budget", "10MB",
        "--state-size", "1MB", "--policy", "lru", "--policy", "oracle", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    named = [(r["policy"], r["admission"], r["budget_states"]) for r in results]
    assert named == [(p, "end+fork", b) for b in (2, 10) for p in ("lru", "oracle")]
    for result in results:
        assert 0.0 < result["hit_token_share"] < 1.0
        assert result["states_written"] == result["states_kept"] + result["evictions"]
        assert result["bytes_written"] == result["states_written"] * 10**6
    table = run("simulate", str(trace), "--block-size", "100")
    assert table.returncode == 0, table.stderr
    assert "learned" in table.stdout
    assert "unlimited" in table.stdout


def test_the_command_refuses(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", *SMALL)
    assert run("simulate", str(tmp_path / "none")).returncode == 2
    done = run("simulate", str(trace), "--budget", "1kB")
    assert done.returncode == 2
    assert "less than one state" in done.stderr


@pytest.mark.parametrize("policy", ["lru", "gdsf", "learned"])
def test_a_real_store_does_the_same(policy: str) -> None:
    requests = [
        Request(float(n), 350, tuple(key(f"{n * 7 % 40} {place}", place) for place in (1, 2, 3)))
        for n in range(300)
    ]
    simulated = replay(requests, make_policy(policy), make_admission(), 20)
    real = replay_through("memory:", requests, policy, make_admission(), 20)
    assert real.states_kept == 20
    assert abs(real.hit_token_share - simulated.hit_token_share) < 0.02


# A production trace, where it is at hand


@pytest.fixture(scope="module")
def production(data_dir: Path) -> list[Request]:
    path = data_dir / "mooncake" / "conversation_trace.jsonl"
    if not path.exists():
        pytest.skip(f"not run: no data at {path}")
    return read_trace(path)


@pytest.mark.parametrize(
    ("admission", "percent", "kept"),
    [
        ("every", 37.4, 170_899),
        ("end", 35.0, 9_633),
        ("end+fork", 35.9, 10_237),
        ("end+fork+sparse", 36.6, 18_151),
    ],
)
def test_unlimited(production: list[Request], admission: str, percent: float, kept: int) -> None:
    result = replay(production, make_policy("lru"), make_admission(admission), None)
    assert 100 * result.hit_token_share == pytest.approx(percent, abs=0.1)
    assert result.states_kept == kept


@pytest.mark.parametrize(
    ("policy", "budget", "percent"),
    [("lru", 1000, 27.5), ("lru", 200, 8.1), ("gdsf", 1000, 30.8), ("gdsf", 200, 18.5)],
)
def test_policies_from_the_books(
    production: list[Request], policy: str, budget: int, percent: float
) -> None:
    result = replay(production, make_policy(policy), make_admission(), budget)
    assert 100 * result.hit_token_share == pytest.approx(percent, abs=0.1)


@pytest.mark.parametrize(("budget", "percent"), [(1000, 31.0), (200, 19.0)])
def test_the_default_wins(production: list[Request], budget: int, percent: float) -> None:
    result = replay(production, make_policy(), make_admission(), budget)
    assert 100 * result.hit_token_share > percent


@pytest.mark.parametrize("budget", [200, 1000])
def test_the_live_store_does_as_well(production: list[Request], budget: int) -> None:
    simulated = replay(production, make_policy(), make_admission(), budget)
    live = replay_through("memory:", production, make_policy().name, make_admission(), budget)
    assert abs(live.hit_token_share - simulated.hit_token_share) < 0.005
