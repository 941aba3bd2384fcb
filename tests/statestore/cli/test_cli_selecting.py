"""Which states a command is about, and what becomes of them: ls, evict, rm, pin, unpin."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from statestore import open_store
from statestore.cli import main
from statestore.cli.selecting import Selection
from statestore.entry import Change, EntryFilter, Role, Status
from tests.places.backend_places import a_key, an_entry, publish
from tests.places.redis_servers import running
from tests.statestore.workers.commanded import run, run_json

NOW = time.time()
HOUR = 3600.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six entries that differ in everything; blobs that no command here reads."""
    root = tmp_path_factory.mktemp("selecting") / "store"
    ages: dict[int, Any] = {
        number: {"created_at": NOW - number * HOUR, "used_at": NOW - number * HOUR / 2}
        for number in range(6)
    }
    with open_store(str(root)) as store:
        backend = store.backend
        publish(backend, an_entry(0, **ages[0], score=60.0, blob_bytes=100, cost_s=3.0))
        publish(backend, an_entry(1, **ages[1], score=20.0, model="m", namespace="other"))
        publish(backend, an_entry(2, **ages[2], score=30.0, labels={"title": "a [b]", "x": ""}))
        publish(backend, an_entry(3, **ages[3], score=40.0, labels={"title": "c"}, pinned=True))
        publish(backend, an_entry(4, **ages[4], score=10.0, role=Role.NAMED, blob_bytes=9000))
        publish(backend, an_entry(5, **ages[5], score=50.0, hits=7, cost_s=2.0))
        backend.update(a_key(5), Change(status=Status.QUARANTINED, reason="damaged"))
    return root


@pytest.fixture
def place(made: Path, tmp_path: Path) -> str:
    """A store of one's own, as made."""
    return str(shutil.copytree(made, tmp_path / "store"))


def here(place: Path | str, *arguments: str) -> Result:
    """A command in this process, where what is looked at is no matter of processes."""
    return CliRunner().invoke(main, ["--store", str(place), *arguments])


def shown(place: Path | str, *arguments: str) -> list[int]:
    """What `ls` lists."""
    done = here(place, "ls", *arguments, "--json")
    assert done.exit_code == 0, done.output
    keys = {str(a_key(number)): number for number in range(6)}
    return [keys[row["key"]] for row in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ("", {0, 1, 2, 3, 4, 5}),
        ("--model m", {1}),
        ("--namespace other", {1}),
        ("--role named", {4}),
        ("--label title", {2, 3}),
        ("--label title=c", {3}),
        ("--label title --label x", {2}),
        ("--label title= ", set()),
        ("--older-than 150m", {3, 4, 5}),
        ("--newer-than 150m", {0, 1, 2}),
        ("--older-than 30m --newer-than 150m", {1, 2}),
        ("--unused-for 2h", {4, 5}),
        ("--larger-than 1000", {4}),
        ("--smaller-than 1000", {0}),
        ("--larger-than 999 --smaller-than 2KiB", {1, 2, 3, 5}),
        ("--pinned", {3}),
        ("--unpinned", {0, 1, 2, 4, 5}),
        ("--quarantined", {5}),
        (f"--key {a_key(2).hex[:6]}", {2}),
        (f"--key {a_key(2)} --key {a_key(4).hex[:9].upper()} --key {a_key(2).hex[:9]}", {2, 4}),
        ("--label title --unpinned --newer-than 1d", {2}),
    ],
)
def test_filters(made: Path, arguments: str, numbers: set[int]) -> None:
    assert set(shown(made, *arguments.split())) == numbers


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("--limit 2", [0, 1]),
        ("--sort used --reverse", [5, 4, 3, 2, 1, 0]),
        ("--sort created --limit 3", [0, 1, 2]),
        ("--sort created --reverse --limit 1", [5]),
        ("--sort size --limit 1", [4]),
        ("--sort size --reverse --limit 1", [0]),
        ("--sort tokens", [5, 4, 3, 2, 1, 0]),
        ("--sort hits --limit 1", [5]),
        ("--sort cost --limit 2", [0, 5]),
        (f"--key {a_key(4).hex} --key {a_key(1).hex} --key {a_key(3).hex}", [1, 3, 4]),
    ],
)
def test_orders(made: Path, arguments: str, numbers: list[int]) -> None:
    assert shown(made, *arguments.split()) == numbers


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--older-than soon", "--older-than: 'soon' is not a time such as 7d"),
        ("--larger-than 5XB", "--larger-than: '5XB' is not a size"),
        ("--larger-than 99999999999PB", "--larger-than: '99999999999PB' is more than any store"),
        ("--key xyz", "key prefix 'xyz'"),
        ("--sort age", "--sort"),
        ("--role king", "--role"),
    ],
)
def test_filters_that_mean_nothing(made: Path, arguments: str, words: str) -> None:
    done = here(made, "ls", *arguments.split())
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("ls", "--limit", "0"),
        ("gc", "--grace", "soon"),
        ("gc", "--grace", "nan"),
        ("verify", "--grace", "inf"),
        ("stats", "--watch", "nan"),
        ("stats", "--watch", "1e300"),
        ("bench", "--seconds", "inf"),
    ],
)
def test_a_number_beyond_reason_is_a_mistake(made: Path, arguments: tuple[str, ...]) -> None:
    done = here(made, *arguments)
    assert done.exit_code == 2, done.output
    assert arguments[1] in done.stderr


@pytest.mark.parametrize("sort", ["used", "size"])
def test_more_than_there_can_be_is_all(made: Path, sort: str) -> None:
    every = here(made, "ls", "--json", "--sort", sort)
    done = here(made, "ls", "--json", "--sort", sort, "--limit", "9" * 20)
    assert (done.exit_code, done.stdout) == (0, every.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ("rm", ""),
        ("rm", "--key", ""),
        ("rm", "--label", "=x"),
        ("rm", "--model", "m", "--namespace", ""),
        ("evict", "--to", "0", "--namespace", ""),
        ("pin", " "),
    ],
)
def test_a_variable_that_was_not_set_selects_nothing(
    place: str, arguments: tuple[str, ...]
) -> None:
    done = here(place, *arguments, "--yes")
    assert done.exit_code == 2
    assert "a key is empty" in done.stderr or "a value is missing" in done.stderr
    assert len(shown(place)) == 6


def test_what_is_asked_of_the_place_is_all_that_it_can_look_for(made: Path) -> None:
    with open_store(str(made)) as store:
        where = EntryFilter(at_least_bytes=1000, created_after=NOW - 2.5 * HOUR)
        assert {entry.key for entry in store.list(where)} == {a_key(1), a_key(2)}
        chosen = Selection(where, labelled=frozenset({"x"}))
        assert [entry.key for entry in chosen.entries(store)] == [a_key(2)]


@pytest.mark.parametrize(
    ("label", "numbers"),
    [
        (r"a\=b", [0]),
        (r"a\=b=c=d", [0]),
        ("a=b=c=d", [1]),
        ("a", [1]),
        (r"a\\=b", [2]),
        (r"a\b", [3]),
        (r"a\=", []),
    ],
)
def test_a_label_is_named_whatever_signs_it_has(
    label: str, numbers: list[int], tmp_path: Path
) -> None:
    labels = [{"a=b": "c=d"}, {"a": "b=c=d"}, {"a\\": "b"}, {"a\\b": ""}]
    with open_store(str(tmp_path / "s")) as store:
        for number, given in enumerate(labels):
            publish(store.backend, an_entry(number, labels=given))
    assert sorted(shown(tmp_path / "s", "--label", label)) == numbers


def test_the_same_filters_on_redis() -> None:
    with running() as server:
        url = f"{server.url}?find_ms=0"
        with open_store(url) as store:
            for number in range(4):
                at = NOW - number * HOUR
                labels = {"title": str(number)} if number else {}
                entry = an_entry(number, created_at=at, used_at=at, labels=labels)
                publish(store.backend, entry)
        assert shown(url, "--label", "title", "--older-than", "90m") == [2, 3]
        gone = run_json("--store", url, "evict", "--label", "title=2", "--yes")
        assert gone["entries"] == 1
        assert shown(url) == [0, 1, 3]


def test_the_table_has_every_column_and_no_markup(made: Path) -> None:
    done = run("--store", str(made), "ls")
    heading, *lines = done.stdout.splitlines()
    assert heading.split()[:3] == ["key", "tokens", "role"]
    assert {"saved", "stored", "labels"} <= set(heading.split())
    assert len(lines) == 6
    assert "title=a [b] x" in done.stdout
    assert "ready, pinned" in done.stdout
    assert re.search(r"quarantined", done.stdout)
    assert "\x1b" not in done.stdout
    nothing = here(made, "ls", "--model", "none")
    assert nothing.stdout == "no such state is stored\n"


def test_a_name_moves_no_cursor(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "s")) as store:
        publish(store.backend, an_entry(1, model="a\x1b[2Jb", labels={"\x07": "\r"}))
    done = run("--store", str(tmp_path / "s"), "ls")
    assert "a?[2Jb" in done.stdout
    assert not set("\x1b\x07\r") & set(done.stdout)


def in_terminal(*arguments: str, answer: str = "", columns: int = 80) -> tuple[int, str]:
    """A command on a terminal of its own: its exit code, and all that was shown."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "statestore", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        start_new_session=True,
    )
    os.close(slave)
    os.write(master, answer.encode())
    said = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        said += piece
    os.close(master)
    return process.wait(60), said.decode()


def test_a_narrow_terminal_gets_the_columns_that_fit(made: Path) -> None:
    code, said = in_terminal("--store", str(made), "ls", columns=60)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("key")
    assert "size" in lines[0]
    assert "labels" not in lines[0]


def test_no_figure_is_cut_on_a_narrow_terminal(made: Path) -> None:
    for columns, spared in ((60, "used"), (20, "hits")):
        code, said = in_terminal("--store", str(made), "stats", columns=columns)
        table = re.sub(r"\x1b\[[0-9;]*m", "", said).partition("\r\n\r\n")[2]
        assert code == 0
        assert "entries" in table
        assert "tokens saved" in table
        assert "…" not in table
        assert spared not in table
        assert "namespace" in table, "what tells the rows apart"
        assert "tier" not in table, "there is one"


def test_what_has_expired_goes_first_as_foretold(place: str) -> None:
    """The longest expired ahead of the others, whatever they are worth; as the place does it."""
    with open_store(place) as store:
        for number, ago in ((0, 5), (1, 9)):
            store.update(a_key(number), expires_at=time.time() - ago)
        sizes = {entry.key: entry.blob_bytes for entry in store.list()}
    to = str(sum(sizes.values()) - sizes[a_key(1)] - 1)
    told = here(place, "evict", "--to", to, "--dry-run", "--json")
    assert json.loads(told.stdout)["keys"] == [str(a_key(1)), str(a_key(0))]
    assert here(place, "evict", "--to", to, "--dry-run").stdout.count(" expired") == 2
    assert here(place, "evict", "--to", to, "--yes").exit_code == 0
    assert sorted(shown(place)) == [2, 3, 4, 5]


def test_a_score_says_what_it_is(place: str) -> None:
    """In words, in seconds since the epoch, and as an order."""
    now = time.time()
    scores = {1: now - 7300, 2: now + 7300, 4: -5.0}
    with open_store(place) as store:
        for entry in list(store.list()):
            if (number := entry.key.n_tokens - 1) in scores:
                store.backend.touch(entry, now, scores[number])
    for number, said in {1: "until 2 h ago", 2: "for 2 h more", 4: "goes first"}.items():
        line = re.search(
            r"^score +(.*)$", here(place, "show", a_key(number).hex).stdout, re.MULTILINE
        )
        assert line is not None
        assert line[1].startswith(f"{scores[number]:.3f}, ")
        assert said in line[1]
    first = json.loads(here(place, "ls", "--sort", "score", "--reverse", "--json").stdout)[0]
    assert first["key"] == str(a_key(4))
    told = here(place, "evict", "--to", "0", "--dry-run").stdout
    assert "worth its bytes until 2 h ago" in told
    assert "the moment until" in " ".join(here(place, "evict", "--help").stdout.split())
    assert '"score" is a moment' in here(place, "show", "--help").stdout


def test_a_long_label_leaves_the_other_fields_where_they_are(place: str) -> None:
    with open_store(place) as store:
        store.update(a_key(2), labels={"long" * 50: "x"})
    said = here(place, "show", a_key(2).hex).stdout.splitlines()
    assert said[0].startswith("key           ")
    assert said[0].index(str(a_key(2))) < 40
    assert f"label {'long' * 50}  x" in said


def test_ctrl_c_at_a_question_is_no_answer(place: str) -> None:
    """130, as the help says, and not the 1 of a no."""
    master, slave = pty.openpty()
    rm = [sys.executable, "-m", "statestore", "--store", place, "rm", a_key(0).hex]
    process = subprocess.Popen(rm, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    asked = b""
    while b"[y/N]" not in re.sub(rb"\s+", b"", asked):
        asked += os.read(master, 4096)
    while process.poll() is None:  # between two looks of Python's at its signals, one is lost
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
    os.close(master)
    assert process.returncode == 130
    assert len(shown(place)) == 6


def test_a_removal_asks_on_a_terminal(place: str) -> None:
    rm = ("--store", place, "rm", a_key(0).hex)
    code, said = in_terminal(*rm, answer="n\n")
    assert code == 1
    assert f"Remove {a_key(0)} (100 B)?" in said
    assert len(shown(place)) == 6
    code, said = in_terminal("--store", place, "evict", "--label", "title", answer="y\n")
    assert code == 0
    assert "Remove 1 state (" in said
    assert shown(place) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize(
    "arguments",
    [
        ("rm", a_key(0).hex),
        ("rm", "--namespace", "other"),
        ("evict", "--to", "0"),
        ("evict", "--older-than", "1h"),
        ("unpin", "--label", "title"),
        ("pin", "--unpinned"),
    ],
)
def test_nothing_happens_where_nobody_can_be_asked(place: str, arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, ["--store", place, *arguments], input="y\n")
    if arguments[0] == "unpin":  # one state: no question
        assert done.exit_code == 0
        return
    assert done.exit_code == 2
    assert "say --yes" in done.stderr
    assert len(shown(place)) == 6
    assert shown(place, "--pinned") == [3]


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["--to", "0"], [5, 4, 1, 2, 0]),
        (["--to", "3100"], [5, 4]),
        (["--to", "20KiB"], []),
        (["--namespace", "other", "--to", "0"], [1]),
        (["--label", "title", "--to", "1500"], [2]),
        (["--label", "title"], [2]),
        (["--pinned", "--label", "title"], [3]),
        (["--quarantined"], [5]),
        (["--policy", "lru", "--to", "2100"], [5, 4, 2]),
        (["--policy", "lfu", "--unpinned"], [5, 4, 2, 1, 0]),
    ],
)
def test_what_would_go_is_what_goes(place: str, arguments: list[str], gone: list[int]) -> None:
    command = ("evict", *arguments, "--json")
    foretold = here(place, *command, "--dry-run")
    assert foretold.exit_code == 0, foretold.output
    keys = json.loads(foretold.stdout)["keys"]
    assert keys == [str(a_key(number)) for number in gone]
    assert len(shown(place)) == 6, "it was only foretold"
    done = here(place, *command, "--yes")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["entries"] == len(gone)
    assert said["blob_bytes"] == json.loads(foretold.stdout)["blob_bytes"]
    assert set(shown(place)) == set(range(6)) - set(gone)


def test_evict_is_told_what_goes(place: str) -> None:
    done = here(place, "evict", "--yes")
    assert done.exit_code == 2
    assert "--to SIZE or by a filter" in done.stderr
    shown_to_people = run("--store", place, "evict", "--to", "3100", "--dry-run")
    assert shown_to_people.stdout.splitlines()[-1] == "would remove 2 states (9.8 KiB)"


def test_rm_takes_keys_or_a_filter(place: str) -> None:
    several = run_json("--store", place, "rm", a_key(0).hex, str(a_key(3)), "--yes")
    assert several == {"entries": 2, "blob_bytes": 1100}
    assert run("--store", place, "rm", "--newer-than", "90m", "--yes").stdout.startswith(
        "removed 1"
    )
    assert shown(place) == [2, 4, 5]
    both = run("--store", place, "rm", a_key(2).hex, "--model", "m", "--yes")
    neither = run("--store", place, "rm", "--yes")
    assert (both.returncode, neither.returncode) == (2, 2)
    assert run("--store", place, "rm", "ffffffff", "--yes").returncode == 5
    assert shown(place) == [2, 4, 5]


def test_pins_by_filter(place: str) -> None:
    assert run_json("--store", place, "pin", "--larger-than", "5000")["entries"] == 1
    assert shown(place, "--pinned") == [3, 4]
    assert run_json("--store", place, "unpin", "--pinned", "--yes")["entries"] == 2
    assert here(place, "pin", a_key(1).hex, a_key(2).hex).stdout == "pinned 2 states\n"
    assert shown(place, "--pinned") == [1, 2]


def test_pinned_meanwhile_is_not_removed_after_the_question(place: str) -> None:
    """A person at the question takes a while; another process pins."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "statestore", "--store", place, "evict", "--label", "title"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    asked = b""
    while b"?" not in asked:
        asked += os.read(master, 4096)
    with open_store(place) as store:
        store.update(a_key(2), pinned=True)
    os.write(master, b"y\n")
    out, _ = process.communicate(timeout=60)
    os.close(master)
    assert out.startswith(b"removed 0 states")
    assert len(shown(place)) == 6
