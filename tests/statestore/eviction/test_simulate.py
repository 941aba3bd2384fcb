"""`statestore simulate`: by hand on small traces, by its command, and on a production trace."""

from __future__ import annotations

import gzip
import json
import random
import shlex
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import zstandard

from statestore.accesslog import Access, AccessLog
from statestore.errors import InputError
from statestore.eviction import make_policy
from statestore.eviction.policy import STOP_S
from statestore.keys import ChunkRule, Role, StateKey, plan
from statestore.simulate import (
    PRODUCTION,
    Repeated,
    Request,
    make_admission,
    make_workers,
    read_trace,
    replay,
    replay_clairvoyant,
    replay_through,
)
from statestore.simulate.admission import stops
from statestore.simulate.prefixes import Prefixes
from statestore.simulate.replay import REPORTED
from statestore.simulate.source import LINE_LIMIT
from tests.places.backend_places import digest
from tests.statestore.workers.commanded import run

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


def a_long_prompt(name: str, blocks: int = 100) -> tuple[StateKey, ...]:
    return tuple(key(f"{name} {place}", place) for place in range(1, blocks + 1))


def test_where_stops_are() -> None:
    """One every 2,560 tokens of the last segment, as far as it is new."""
    keys = a_long_prompt("long")
    assert stops(keys, 0) == [25, 51, 76]
    assert stops(keys, 26) == [51, 76]
    assert stops(keys, 77) == stops(keys, 100) == []
    assert stops(keys[:1], 0) == []
    assert stops(keys, 0, {10, 20}) == [46, 72, 97]
    assert stops(keys, 0, {99}) == [25, 51, 76]  # the prompt's own end
    assert stops(keys[:77], 0) == [25, 51]  # where a stop would be, the end is


def test_stops_are_the_runtimes() -> None:
    """As chunks of 256 tokens and its default rule give them."""
    lengths = (700, 9000, 13_000)
    prompt = plan([[7] * length for length in lengths], bytes(32), ChunkRule())
    ends = {b.position: b.role for b in prompt.boundaries}
    keys = [key for key in prompt.stable_behind(0) if key.n_tokens < prompt.n_tokens]
    keys.append(prompt.keys[-1])
    declared = {place for place, key in enumerate(keys) if ends.get(key.n_tokens) is Role.SEGMENT}
    begin = max(at for at, role in ends.items() if role is Role.SEGMENT and at < 9800)
    wanted = [at for at, role in ends.items() if role is Role.SPARSE and at > begin]
    assert [keys[place].n_tokens for place in stops(keys, 0, declared)] == wanted
    assert len(wanted) == 5


def test_stops_stay_where_there_is_room() -> None:
    keys = a_long_prompt("long")
    first = Request(0.0, 10_000, keys)
    parts = Request(10.0, 10_000, (*keys[:80], *a_long_prompt("else")[80:]))
    for budget, found in ((None, 7700), (10, 7700), (1, 0)):
        result = replay([first, parts], make_policy(), make_admission(PRODUCTION), budget)
        assert result.total.hit_tokens == found, budget
    result = replay([first] * 2, make_policy(), make_admission(PRODUCTION), 1)
    assert (result.total.states_written, result.total.hit_tokens) == (2, 10_000)


def test_stops_go_first_and_are_no_reason_to_drop_anything() -> None:
    """Room for five: stops and an end, an end, then ends alone."""
    requests = [Request(float(n), 10_000, a_long_prompt(str(n))) for n in range(20)]
    again = [Request(30.0 + n, 10_000, a_long_prompt(str(15 + n))) for n in range(5)]
    result = replay([*requests, *again], make_policy("lru"), make_admission(PRODUCTION), 5)
    assert result.total.hit_tokens == 5 * 10_000
    assert result.total.states_written == 20 + 4


def test_stops_go_after_a_while() -> None:
    keys = a_long_prompt("long")
    parts = (*keys[:80], *a_long_prompt("else")[80:])
    for later_s, found in ((STOP_S - 1, 7700), (STOP_S, 0)):
        requests = [Request(0.0, 10_000, keys), Request(later_s, 10_000, parts)]
        result = replay(requests, make_policy(), make_admission(PRODUCTION), None)
        assert result.total.hit_tokens == found
        assert result.states_kept == result.total.states_written - result.total.evictions


def test_a_stop_that_was_used_stays() -> None:
    keys = a_long_prompt("long")
    requests = [
        Request(at, 10_000, (*keys[:80], *a_long_prompt(str(at))[80:]))
        for at in (0.0, 10.0, 2 * STOP_S)
    ]
    result = replay(requests, make_policy(), make_admission("end+fork+sparse"), None)
    assert result.total.hit_tokens == 7700 + 8000  # the last begins at the fork


def test_ends_that_spare_little_are_not_worth_a_state() -> None:
    keys = (StateKey(digest("a"), 1000), StateKey(digest("b"), 1063), StateKey(digest("c"), 1100))
    admission = make_admission("end")
    assert admission.stored(keys[:2], 1) == []
    assert admission.stored(keys, 0, segments={0, 1}) == [(0, Role.SEGMENT), (2, Role.PROMPT)]
    dear = make_admission("end", gain_tokens=500)
    assert dear.stored(keys, 0, segments={0, 1}) == [(0, Role.SEGMENT)]


def test_hours_add_up() -> None:
    requests = [Request(3000.0 * n, 150, (key(f"{n % 2}", 1),)) for n in range(6)]
    result = replay(requests, make_policy(), make_admission(), None)
    assert sorted(result.hours) == [0, 1, 2, 3, 4]
    hours = result.hours.values()
    assert sum(hour.hit_tokens for hour in hours) == result.total.hit_tokens == 400
    assert sum(hour.requests for hour in hours) == 6


def test_a_night_without_requests_costs_nothing() -> None:
    requests = [Request(at, 150, (key("a", 1),)) for at in (0.0, 9e8)]
    result = replay(requests, make_policy(), make_admission(), None)
    assert sorted(result.hours) == [0, 250_000]


def test_progress_is_told() -> None:
    told: list[int] = []
    requests = [Request(float(n), 150, (key("a", 1),)) for n in range(2 * REPORTED + 1)]
    replay(requests, make_policy(), make_admission(), None, progress=told.append)
    assert told == [REPORTED, REPORTED, 1]


def test_a_trace_is_told_as_it_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "trace", *(mooncake(n, 150, *[1] * 2) for n in range(20_000)))
    told: list[int] = []
    read_trace(path, BLOCK, told.append)
    assert len(told) == 2
    assert sum(told) == path.stat().st_size


def test_a_trace_several_times_over(tmp_path: Path) -> None:
    """Nothing of one time is found in the next, and each time it goes as it went."""
    once = read_trace(written(tmp_path / "trace", *SMALL), BLOCK)
    thrice = Repeated(once, 3)
    assert len(thrice) == 12
    assert thrice[:4] == once == list(Repeated(once, 1))
    assert [request.time_s for request in thrice[3:6]] == [30.0, 40.0, 50.0]
    assert thrice[-1] == thrice[11]
    assert len({key for request in thrice for key in request.keys}) == 3 * 5
    alone, result = (
        replay(requests, make_policy(), make_admission("end"), None) for requests in (once, thrice)
    )
    assert result.total.hit_tokens == 3 * alone.total.hit_tokens == 1800
    assert result.total.states_written == 3 * alone.total.states_written
    with pytest.raises(InputError, match="1000000000 times"):
        Repeated(once, 10**9)


def test_a_million_requests_fit_into_memory(tmp_path: Path) -> None:
    """Of each prefix 16 bytes are kept, not a key of a quarter of a kilobyte."""
    lines = [mooncake(at, 5000, *range(50 * at, 50 * at + 50)) for at in range(1000)]
    path = written(tmp_path / "trace", *lines)
    tracemalloc.start()
    requests = read_trace(path, BLOCK)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(requests) == 1000
    assert taken < 1000 * (50 * 16 + 600)


def test_packed_keys_are_keys() -> None:
    keys = [StateKey(bytes([place]) * 32, 7 * place) for place in range(1, 6)]
    packed = Prefixes(b"".join(key.digest[:16] for key in keys), range(7, 36, 7))
    assert list(packed) == keys
    assert packed[::-1] == tuple(keys[::-1])
    assert packed[1:3] == tuple(keys[1:3])
    assert packed[-1] == keys[-1]
    assert packed == tuple(keys)
    assert packed != tuple(keys[1:])
    assert hash(packed) == hash(tuple(keys))
    assert packed.index(keys[3]) == 3
    with pytest.raises(IndexError):
        packed[5]


def test_the_oracle_is_ahead_of_all() -> None:
    """Three prompts in turn, in room for two: who knows the future keeps one of them."""
    requests = [Request(float(n), 200, (key(f"{n % 3}", 2),)) for n in range(30)]
    lru = replay(requests, make_policy("lru"), make_admission(), 2)
    best = replay_clairvoyant(requests, make_admission(), 2)
    assert lru.total.hit_tokens == 0
    assert best.total.hit_tokens >= 13 * 200
    unlimited = replay_clairvoyant(requests, make_admission(), None)
    assert unlimited.total.hit_tokens == 27 * 200


def logged(second: float, *keys: StateKey, segments: tuple[int, ...] = ()) -> Access:
    return Access(
        time_s=second,
        namespace="default",
        n_tokens=keys[-1].n_tokens,
        positions=[k.n_tokens for k in keys],
        digests=[k.digest for k in keys],
        segments=segments,
        stable=False,
        cached_tokens=0,
        seconds=0.5,
    )


def test_an_access_log(tmp_path: Path) -> None:
    """As the project writes it: prefixes are told apart, and declared segments known."""
    log = AccessLog(tmp_path / "log")
    log.append(logged(7.0, key("a", 1), key("b", 2), segments=(100,)))
    log.append(logged(5.0, key("a", 1), key("c", 2), key("d", 3)))
    requests = read_trace(tmp_path / "log")
    assert [request.time_s for request in requests] == [5.0, 7.0]
    assert [request.n_tokens for request in requests] == [300, 200]
    assert requests[0].keys[0] == requests[1].keys[0]
    assert requests[0].keys[1] != requests[1].keys[1]
    assert requests[1].segments == {0}
    result = replay([requests[1], requests[0]], make_policy(), make_admission(), None)
    assert result.total.hit_tokens == 100


A_BLOCK = '{"hash_ids": [1], "input_length": 600, "timestamp": 0}\n'
A_KEY = "00" * 16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it holds no request"),
        ("\n{}\n", "line 2: no request: neither hash_ids"),
        ("not json\n", "line 1: no request"),
        ("[1, 2]\n", "line 1: no request: a JSON object is wanted, not list"),
        (A_BLOCK + "7\n", "line 2: no request"),
        (A_BLOCK + '{"hash_ids": [1', "line 2: no request"),
        ("timestamp,input_length\n", "line 1: no request: it is not one JSON object on a line"),
        (A_BLOCK.replace("[1]", "[1, 2, 3, 4, 5, 6]"), "6 hash_ids for 600 tokens: .*--block-size"),
        (A_BLOCK.replace("600", "9000"), "1 hash_ids for 9000 tokens: .*--block-size"),
        (A_BLOCK.replace("600", '"many"'), "line 1: no request: input_length is a count"),
        (A_BLOCK.replace("600", "-1"), "input_length is a count of tokens"),
        (A_BLOCK.replace("600", "true"), "input_length is a count of tokens"),
        (A_BLOCK.replace("600", "6e2"), "input_length is a count of tokens"),
        (A_BLOCK.replace("600", "9" * 30), "input_length is a count of tokens"),
        (A_BLOCK.replace("600", "9" * 5000), "line 1: no request"),
        (A_BLOCK.replace(": 0}", ": NaN}"), "timestamp is no time"),
        (A_BLOCK.replace(": 0}", ": -Infinity}"), "timestamp is no time"),
        (A_BLOCK.replace(": 0}", ": 1e300}"), "timestamp is no time"),
        (A_BLOCK.replace(": 0}", ": " + "9" * 400 + "}"), "timestamp is no time"),
        (A_BLOCK.replace(": 0}", ": null}"), "timestamp is no time"),
        (A_BLOCK + A_BLOCK.replace(": 0}", ": 9e14}"), "lie between its first and its last"),
        (A_BLOCK.replace("[1]", '{"a": 1}'), "hash_ids is a list of int"),
        (A_BLOCK.replace("[1]", "[1.5]"), "hash_ids is a list of int"),
        (A_BLOCK.replace("[1]", "[" * 100_000), "line 1: no request"),
        ('{"time": 1, "tokens": 5, "positions": [5], "keys": ["nonsense"]}\n', "line 1"),
        ('{"time": 1, "tokens": 5, "positions": [5], "keys": ["00"]}\n', "32 hex digits"),
        ('{"time": 1, "tokens": 5, "positions": [5], "keys": []}\n', "1 positions and 0 keys"),
        (f'{{"time": 1, "tokens": 5, "positions": [6], "keys": ["{A_KEY}"]}}\n', "not ascending"),
        (f'{{"time": 1, "tokens": 5, "positions": [0], "keys": ["{A_KEY}"]}}\n', "not ascending"),
        ("\ud800", "line 1: no request: it is not UTF-8"),
    ],
)  # fmt: skip
def test_a_trace_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(InputError, match=message):
        read_trace(path)


PACKED = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("packed", PACKED)
def test_a_compressed_trace(tmp_path: Path, packed: str) -> None:
    """From a file of any name, and from a pipe."""
    plain = "".join(json.dumps(line) + "\n" for line in SMALL).encode()
    halves = [PACKED[packed](plain[:300]), PACKED[packed](plain[300:])]  # as logs are put together
    path = tmp_path / "trace"
    path.write_bytes(b"".join(halves))
    (tmp_path / "plain").write_bytes(plain)
    assert read_trace(path, BLOCK) == read_trace(tmp_path / "plain", BLOCK)
    command = f"{shlex.quote(sys.executable)} -m statestore simulate - --block-size 100 --json"
    with path.open("rb") as file:
        done = subprocess.run(shlex.split(command), stdin=file, capture_output=True, check=True)
    (result,) = json.loads(done.stdout)["results"]
    assert result["requests"] == 4


def test_a_compressed_trace_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(A_BLOCK.encode() * 1000)[:-20])
    with pytest.raises(InputError, match="trace: it is compressed, and damaged: Compressed file"):
        read_trace(path)
    packed = bytearray(PACKED["zstd"](A_BLOCK.encode() * 1000))
    packed[5] ^= 255
    path.write_bytes(packed)
    with pytest.raises(InputError, match="trace: it is compressed, and damaged: zstd"):
        read_trace(path)


def test_a_line_that_unpacks_to_too_much(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(bytes(LINE_LIMIT + 100)))
    with pytest.raises(InputError, match="line 1: no request: longer than"):
        read_trace(path)


def test_progress_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for text in (A_BLOCK.encode() * 40_000, gzip.compress(A_BLOCK.encode() * 40_000)):
        path.write_bytes(text)
        told: list[int] = []
        read_trace(path, progress=told.append)
        assert sum(told) == len(text)
        assert all(told)


def test_a_mark_of_byte_order_is_none_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_bytes(b"\xef\xbb\xbf" + A_BLOCK.encode() + b"\r\n" + A_BLOCK.encode())
    assert len(read_trace(path)) == 2


def test_times_may_be_negative_and_in_any_order(tmp_path: Path) -> None:
    lines = [mooncake(at, 150, 1) for at in (-5, -20, -10)]
    requests = read_trace(written(tmp_path / "trace", *lines), BLOCK)
    assert [request.time_s for request in requests] == [-20.0, -10.0, -5.0]
    assert replay(requests, make_policy(), make_admission(), 5).total.hit_tokens == 200


def test_a_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with path.open("wb") as file:
        file.truncate(LINE_LIMIT + 100)
    with pytest.raises(InputError, match="line 1: no request: longer than"):
        read_trace(path)


def test_an_id_may_come_again(tmp_path: Path) -> None:
    """It does not, in sound traces; at another place it is another prefix."""
    twice = [mooncake(0, 300, 1, 1, 1), mooncake(9, 300, 1, 1, 1), mooncake(9, 0), mooncake(9, 50)]
    requests = read_trace(written(tmp_path / "trace", *twice), BLOCK)
    for budget in (None, 1, 2):
        result = replay(requests, make_policy(), make_admission("every"), budget)
        assert result.total.hit_tokens == 300


def test_the_command(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", *SMALL)
    done = run(
        "simulate", str(trace), "--block-size", "100", "--budget-states", "2", "--budget", "10MB",
        "--state-size", "1MB", "--policy", "lru", "--policy", "oracle", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    named = [(r["policy"], r["admission"], r["budget_states"]) for r in results]
    assert named == [(p, PRODUCTION, b) for b in (2, 10) for p in ("lru", "oracle")]
    for result in results:
        assert 0.0 < result["hit_token_share"] < 1.0
        assert result["states_written"] == result["states_kept"] + result["evictions"]
        assert result["bytes_written"] == result["states_written"] * 10**6
        assert result["hit_token_share"] == result["hit_tokens"] / result["input_tokens"]
        assert [hour["hit_tokens"] for hour in result["hours"]] == [result["hit_tokens"]]
    table = run("simulate", str(trace), "--block-size", "100", *["--budget-states", "0"] * 2)
    assert table.returncode == 0, table.stderr
    assert table.stdout.count("learned") == 1  # asked for twice, replayed once
    assert "unlimited" in table.stdout
    assert not table.stderr  # the bar is for terminals


def test_hours_in_the_table(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", *SMALL, mooncake(8000, 350, 1, 2, 3))
    rows = run("simulate", str(trace), "--block-size", "100").stdout.splitlines()
    in_all = run("simulate", str(trace), "--block-size", "100", "--in-all").stdout.splitlines()
    assert len(rows) == len(in_all) + 2  # the first hour and the third


def test_the_command_draws(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", *SMALL)
    picture = tmp_path / "found.svg"
    done = run(
        "simulate", str(trace), "--block-size", "100", "--budget-states", "2", "--budget-states",
        "3", "--budget-states", "0", "--policy", "lru", "--policy", "gdsf", "--plot", str(picture),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = ET.parse(picture).getroot()
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.get("points", "").split()) for line in lines] == [3, 3]
    assert all(f">{budget}<" in picture.read_text() for budget in ("2", "3", "unlimited"))
    done = run("simulate", str(trace), "--block-size", "100", "--plot", str(tmp_path / "no" / "x"))
    assert done.returncode == 2
    assert "No such file" in done.stderr


@pytest.mark.parametrize("url", [None, "memory:", "file"])
def test_the_command_through_a_real_store(tmp_path: Path, url: str | None) -> None:
    trace = written(tmp_path / "trace", *SMALL)
    place = [f"file://{tmp_path / 'store'}"] if url == "file" else [url] if url else []
    done = run(
        "simulate", str(trace), "--block-size", "100", "--admission", "end", "--json", "--real",
        *place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert (result["hit_tokens"], result["states_kept"]) == (600, 3)


def test_workers_share_a_real_store(tmp_path: Path) -> None:
    """What one of them puts the others find, whatever each has seen."""
    trace = written(tmp_path / "trace", *SMALL)
    for real in ([], ["--real"], ["--real", f"file://{tmp_path / 'store'}"]):
        done = run(
            "simulate", str(trace), "--block-size", "100", "--admission", "end", "--json",
            "--workers", "3", *real,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (result,) = json.loads(done.stdout)["results"]
        assert (result["hit_tokens"], result["states_kept"]) == (600, 3)


def test_the_command_refuses(tmp_path: Path) -> None:
    trace = written(tmp_path / "trace", *SMALL)
    assert run("simulate", str(tmp_path / "none")).returncode == 2
    done = run("simulate", str(trace), "--budget", "1kB")
    assert done.returncode == 2
    assert "less than one state" in done.stderr
    for option, value in (("--speed", "nan"), ("--fetch", "inf")):
        done = run("simulate", str(trace), option, value)
        assert done.returncode == 2
        assert "finite numbers are wanted" in done.stderr
    done = run("simulate", str(trace), "--plot", str(tmp_path / "none" / "found.svg"))
    assert done.returncode == 2
    assert "none/found.svg: No such file" in done.stderr
    done = run("simulate", str(trace), "--policy", "oracle", "--real")
    assert done.returncode == 2
    assert "knows the future" in done.stderr


@pytest.mark.parametrize("policy", ["lru", "gdsf", "learned"])
@pytest.mark.parametrize("budget", [20, None])
def test_a_real_store_does_the_same(policy: str, budget: int | None) -> None:
    """Prompts that leave some documents half-way, or are them, for an hour: to the last token."""
    dice = random.Random(3)
    requests: list[Request] = []
    for number in range(300):
        document = a_long_prompt(f"{min(int(dice.paretovariate(0.8)), 40)}")
        parts = dice.choice([50, 85, 100])
        keys = (*document[:parts], *a_long_prompt(f"else {number}")[parts:])
        requests.append(Request(12.0 * number, 10_000, keys))
    simulated = replay(requests, make_policy(policy), make_admission(PRODUCTION), budget)
    real = replay_through("memory:", requests, policy, make_admission(PRODUCTION), budget)
    assert real.total.hit_tokens == simulated.total.hit_tokens > 0
    assert real.states_kept == simulated.states_kept


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
        ("end+fork+sparse", 37.0, 18_705),
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


@pytest.mark.parametrize(("budget", "percent"), [(1000, 32.2), (200, 20.0)])
def test_the_default_wins(production: list[Request], budget: int, percent: float) -> None:
    result = replay(production, make_policy(), make_admission(), budget)
    assert 100 * result.hit_token_share > percent


@pytest.mark.parametrize("workers", [4, 16])
def test_many_workers_are_ahead_of_guesses(production: list[Request], workers: int) -> None:
    for budget, percent in ((200, 18.2), (1000, 31.4)):
        policy = make_workers("learned", workers)
        result = replay(production, policy, make_admission(), budget)
        assert 100 * result.hit_token_share > percent


@pytest.mark.parametrize("budget", [50, 200])
def test_the_live_store_does_as_well(
    production: list[Request], tmp_path: Path, budget: int
) -> None:
    """Over part of the trace; `statestore simulate --real` does the whole. A store throws other
    dice than the simulator, where a sample is not all.
    """
    requests = production[:700]
    simulated = replay(requests, make_policy(), make_admission(PRODUCTION), budget)
    for url, tolerance in (
        ("memory:", 0.0 if budget == 50 else 0.005),
        ((tmp_path / "store").as_uri(), 0.005),
    ):
        rule = make_admission(PRODUCTION)
        live = replay_through(url, requests, make_policy().name, rule, budget)
        assert abs(live.hit_token_share - simulated.hit_token_share) <= tolerance
