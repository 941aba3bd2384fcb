"""The `statestore` command through real processes: tables, JSON, errors, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from statestore import ChunkRule, open_store, plan
from statestore.cli import main
from tests.places.states import IDENTITY, fill, make_state
from tests.statestore.workers.commanded import run, run_json


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with three states."""
    address = (tmp_path / "a store").as_uri()
    with open_store(address) as store:
        fill(store, 3)
    return address


def only_blob(tmp_path: Path) -> Path:
    return min(p for p in (tmp_path / "a store" / "blobs").rglob("*") if p.is_file())


def test_ls_lists_as_table_and_json(url: str) -> None:
    table = run("--store", url, "ls")
    rows = run_json("--store", url, "ls")
    assert len(rows) == 3
    assert all(row["key"][:16] in table.stdout for row in rows)
    assert {row["n_tokens"] for row in rows} == {40}


def test_ls_filters(url: str) -> None:
    assert len(run_json("--store", url, "ls", "--model", "random.pth")) == 1
    assert len(run_json("--store", url, "ls", "--limit", "2")) == 2
    assert run_json("--store", url, "ls", "--quarantined") == []
    assert run_json("--store", url, "ls", "--namespace", "other") == []


def test_a_mistyped_path_is_no_new_store(tmp_path: Path) -> None:
    done = run("--store", str(tmp_path / "typo"), "ls")
    assert (done.returncode, (tmp_path / "typo").exists()) == (2, False)
    assert str(tmp_path / "typo") in done.stderr


def test_an_empty_store_says_so(tmp_path: Path) -> None:
    open_store(str(tmp_path / "new")).close()
    assert "nothing is stored here yet" in run("--store", str(tmp_path / "new"), "ls").stdout


def test_show_takes_the_first_digits(url: str) -> None:
    key = run_json("--store", url, "ls")[0]["key"]
    assert run_json("--store", url, "show", key[:12])["key"] == key
    assert key in run("--store", url, "show", key[:12]).stdout


def test_show_of_an_unknown_key_exits_with_5(url: str) -> None:
    done = run("--store", url, "show", "abcdef")
    assert done.returncode == 5
    assert "abcdef" in done.stderr
    assert "Traceback" not in done.stderr


def test_stats_add_up(url: str) -> None:
    stats = run_json("--store", url, "stats")
    rows = run_json("--store", url, "ls")
    assert stats["entries"] == 3
    assert stats["blob_bytes"] == sum(row["blob_bytes"] for row in rows)
    assert stats["state_bytes"] == sum(row["state_bytes"] for row in rows)


def test_verify_finds_and_fixes_damage(url: str, tmp_path: Path) -> None:
    assert run("--store", url, "verify").returncode == 0
    blob = only_blob(tmp_path)
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.write_bytes(content)
    found = run("--store", url, "verify", "--json")
    assert found.returncode == 3
    assert len(json.loads(found.stdout)["unsound"]) == 1
    assert run("--store", url, "verify", "--fix").returncode == 3
    assert run("--store", url, "verify").returncode == 0
    assert run_json("--store", url, "stats")["quarantined"] == 1
    assert len(run_json("--store", url, "ls", "--quarantined")) == 1


def test_rm_asks_and_removes(url: str) -> None:
    key = run_json("--store", url, "ls")[0]["key"]
    refused = run("--store", url, "rm", key[:12], stdin="n\n")
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True), "nobody can be asked"
    assert len(run_json("--store", url, "ls")) == 3
    assert run("--store", url, "rm", key[:12], "--yes").returncode == 0
    assert len(run_json("--store", url, "ls")) == 2


def test_gc_removes_orphans_only(url: str, tmp_path: Path) -> None:
    orphan = tmp_path / "a store" / "blobs" / "00" / ("0" * 64 + "-1." + "f" * 16)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"left over")
    assert run_json("--store", url, "gc")["blobs"] == 0, "it is younger than the grace period"
    assert run_json("--store", url, "gc", "--grace", "0")["blobs"] == 1
    assert run("--store", url, "verify").returncode == 0


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/path", "ftp://"),
        ("file:///tmp/x?codec=zip", "codec"),
        ("file:///tmp/x?size=1", "size"),
        ("file://host/x", "absolute path"),
        ("file:///tmp/x/%00", "zero byte"),
        ("file:///tmp/x#1", "%23"),
        ("file:/tmp/x", "file://"),
        ("file://[x", "IPv6"),
        ("~nobody-of-this-name/x", "nobody-of-this-name"),
        ("", "empty"),
    ],
)
def test_a_bad_url_is_one_line_and_exit_code_2(address: str, words: str) -> None:
    done = run("--store", address or " ", "ls")
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_path_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("not a store")
    done = run("--store", str(path), "ls")
    assert done.returncode in (2, 4)
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_text() == "not a store"


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command, those of groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        else:
            yield (*path, name)


@pytest.mark.parametrize("words", list(commands(main)), ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(main, [*words, "--help"], prog_name="statestore").stdout
    assert shown.startswith(f"Usage: statestore {' '.join(words)}")
    assert re.search(rf"\n    statestore (--store \S+ )?{' '.join(words)}", shown), shown
    assert "\\b" not in shown


def test_the_table_of_commands_says_what_their_help_says() -> None:
    context = click.Context(main)
    shown = " ".join(CliRunner().invoke(main, ["--help"]).stdout.split())
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert f" {name} {command.get_short_help_str(300)}" in shown


def test_help_is_there_without_a_store() -> None:
    assert run("ls", "-h").stdout.startswith("Usage: statestore ls")


def test_a_key_is_taken_as_other_commands_print_it(url: str) -> None:
    key = run_json("--store", url, "ls")[0]["key"]
    assert run_json("--store", url, "show", key)["key"] == key
    assert run("--store", url, "rm", key, "--yes").returncode == 0


def test_brackets_in_a_name_are_no_markup(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "s")) as store:
        prompt = plan([[1] * 40], IDENTITY.fingerprint, ChunkRule())
        boundary = prompt.boundaries[-1]
        store.put(
            IDENTITY,
            boundary.key,
            make_state(1),
            token_digest=boundary.token_digest,
            role=boundary.role,
            model="[/bold]x[red]",
        )
    assert "[/bold]x[red]" in run("--store", str(tmp_path / "s"), "ls").stdout


def test_ctrl_c_while_it_is_loaded() -> None:
    """Within the first moment, when no command has begun: as later, without a traceback."""
    interrupted = (
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'click':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from statestore.cli import main\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", interrupted], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "statestore: stopped\n")
