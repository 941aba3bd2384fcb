"""The `rwkv-runtime` command through real processes, on random weights."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

import rwkv_runtime
from rwkv_runtime.__main__ import main
from statestore import open_store
from tests.runtime.weights.old_versions import write_old_weights, write_tuned
from tests.runtime.workers.commanded import run
from tests.runtime.workers.terminals import terminal


def run_json(*arguments: str, stdin: str = "") -> Any:
    done = run(*arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text("A text of some length. " * 40, encoding="utf-8")
    return path


@pytest.fixture
def common(model_path: Path, tmp_path: Path) -> list[str]:
    return ["--model", str(model_path), "--store", str(tmp_path / "states")]


def test_warm_then_ask_in_another_process(common: list[str], document: Path) -> None:
    warmed = run_json("warm", *common, str(document))["documents"][0]
    assert (warmed["cached_tokens"], warmed["computed_tokens"]) == (0, 920)
    assert warmed["stored"]
    ask = ["ask", *common, "--document", str(document), "--max-tokens", "5"]
    rows = run_json(*ask, "--question", "One?", "--question", "Two?")["questions"]
    assert [row["cached_tokens"] for row in rows] == [920, 920]
    assert all(row["computed_tokens"] < 20 for row in rows)
    fields = {"answer", "cached_tokens", "computed_tokens", "tokenise_s", "ttft_s"}
    assert all(fields <= row.keys() for row in rows)


def test_warm_says_which_documents_the_store_did_not_keep(
    model_path: Path, tmp_path: Path, document: Path
) -> None:
    store = f"{(tmp_path / 'tight').as_uri()}?budget=1KiB"
    done = run("warm", "--model", str(model_path), "--store", store, str(document), "--json")
    assert done.returncode == 4
    row = json.loads(done.stdout)["documents"][0]
    assert (row["computed_tokens"], row["stored"]) == (920, False)
    assert f"not kept by the store: {document}" in done.stderr
    assert "Traceback" not in done.stderr


def test_ask_reads_standard_input(common: list[str]) -> None:
    ask = ["ask", *common, "--document", "-", "--question", "One?", "--max-tokens", "2"]
    first = run_json(*ask, stdin="A text on standard input. " * 20)["questions"][0]
    again = run_json(*ask, stdin="A text on standard input. " * 20)["questions"][0]
    assert first["cached_tokens"] == 0
    assert again["computed_tokens"] < 20  # a short question's end is not worth a state
    assert first["logits_sha256"] == again["logits_sha256"]


def test_ask_for_people_shows_answer_and_cost(common: list[str], document: Path) -> None:
    done = run("ask", *common, "--document", str(document), "--question", "One?")
    assert done.returncode == 0
    assert "One?" in done.stdout
    assert "0 tokens from the store" in done.stdout


def test_generate_is_repeatable_with_a_seed(common: list[str], document: Path) -> None:
    generate = ["generate", *common, "--document", str(document), "--prompt", "And then"]
    options = ["--temperature", "1", "--seed", "5", "--max-tokens", "12"]
    one, two = (run_json(*generate, *options) for _ in range(2))
    assert one["text"] == two["text"]
    assert one["cached_tokens"] == 0
    assert two["computed_tokens"] < 20


def test_fingerprint_depends_on_dtype_and_not_on_the_file_name(
    model_path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "another name.safetensors"
    copy.write_bytes(model_path.read_bytes())
    digests = [
        run_json("fingerprint", "--model", str(path), "--dtype", dtype)["digest"]
        for path, dtype in ((model_path, "fp32"), (copy, "fp32"), (model_path, "bf16"))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--model": "missing.pth"}, "missing.pth"),
        ({"--document": "missing.txt"}, "missing.txt"),
        ({"--store": "ftp://x"}, "ftp"),
        ({"--namespace": "no good"}, "namespace"),
        ({"--tokenizer": "world"}, "world"),
    ],
)
def test_mistakes_are_named_in_one_line(
    common: list[str], document: Path, change: dict[str, str], words: str
) -> None:
    options = dict(zip(common[::2], common[1::2], strict=True))
    options |= {"--document": str(document), "--question": "One?"} | change
    done = run("ask", *(text for pair in options.items() for text in pair))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_cannot_be_opened_is_said_before_anything_is_read(
    model_path: Path, document: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    common = ["--model", str(model_path), "--store", str(blocked)]
    done = run("ask", *common, "--document", str(document), "--question", "One?")
    assert done.returncode in (2, 4)
    assert str(blocked) in done.stderr


@pytest.mark.parametrize("command", ["demo", "ask", "chat", "generate", "warm", "fingerprint"])
def test_every_command_has_help(command: str) -> None:
    assert "Usage:" in run(command, "--help").stdout


def test_help_shows_an_example_as_it_is_typed() -> None:
    shown = run("ask", "--help").stdout
    assert "\\b" not in shown
    assert '      --document report.txt --question "Who wrote it?"' in shown


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_narrow_locale_does_not_stop_an_answer(
    common: list[str], document: Path, form: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    ask = [sys.executable, "-m", "rwkv_runtime", "ask", *common, "--document", str(document)]
    done = subprocess.run(
        [*ask, "--question", "Où?", *form], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_empty_document_is_named_before_any_is_read(
    common: list[str], document: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    done = run("warm", *common, str(document), str(tmp_path / "empty.txt"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "empty.txt" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["warm", "{document}"],
        ["ask", "--document", "{document}", "--question", "One?"],
        ["generate", "--document", "{document}"],
        ["chat", "--system", "A very long text. " * 5_000],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_long_reading_shows_its_pace_and_the_time_left(
    common: list[str], tmp_path: Path, arguments: list[str]
) -> None:
    document = tmp_path / "long.txt"
    document.write_text("A very long text. " * 20_000, encoding="utf-8")
    given = [argument.format(document=document) for argument in arguments]
    with terminal(*given, *common) as (_, person):
        if arguments[0] == "chat":
            person.until(b"> ")
            person.type(b"One?\n")
        person.until(rb"[0-9,]+ tokens/s.{1,30}\d:\d\d:\d\d")


def test_prompts_without_a_text_are_named_before_a_model_is_loaded(
    common: list[str], document: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").touch()
    ask = ["ask", *common, "--question", "One?", "--document"]
    empty = run(*ask, str(tmp_path / "empty.txt"))
    assert (empty.returncode, empty.stdout) == (2, "")
    assert "empty.txt: is empty" in empty.stderr
    silent = run(*ask, str(document), "--question", " ")
    assert (silent.returncode, silent.stdout) == (2, "")
    assert "a question is empty" in silent.stderr
    nothing = run("generate", *common)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "give --prompt or --document" in nothing.stderr


def test_ctrl_c_ends_quietly_and_keeps_what_was_read(common: list[str], tmp_path: Path) -> None:
    document = tmp_path / "long.txt"
    document.write_text("A very long text. " * 500_000, encoding="utf-8")
    warm = [sys.executable, "-m", "rwkv_runtime", "warm", *common, str(document)]
    # A shell's background job, as a test run may be, has Ctrl-C ignored, and hands that on.
    by_default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        warm,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=by_default,  # noqa: PLW1509 - takes no lock that a thread could hold
    ) as running:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "states").rglob("*-*.*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "Traceback" not in errors
    with open_store(str(tmp_path / "states")) as store:
        entries = list(store.list())
        assert entries
        assert not any(store.check(entry) for entry in entries)


@pytest.mark.parametrize(
    "words",
    [
        "from rwkv_runtime import Runtime",
        "from rwkv_runtime.__main__ import main; main(['fingerprint', '--model', 'demo'])",
    ],
    ids=["python", "command"],
)
def test_without_torch_the_way_to_get_it_is_said(words: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; {words}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs torch: pip install 'rwkv-statestore[runtime]'" in done.stderr.splitlines()[-1]


def test_help_and_the_package_itself_do_not_load_torch() -> None:
    code = (
        "import sys, rwkv_runtime\nfrom rwkv_runtime.__main__ import main\n"
        "main(['--help'], 'rwkv-runtime', standalone_mode=False)\n"
        "print([name for name in ('torch', 'sqlalchemy', 'redis') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {name} " in done.stdout for name in ("demo", "ask", "warm", "serve"))


@pytest.mark.parametrize("command", main.list_commands(click.Context(main)))
def test_options_are_completed_without_a_model_library(command: str) -> None:
    code = (
        "import sys\nfrom rwkv_runtime.__main__ import main\n"
        "try:\n    main(prog_name='rwkv-runtime')\n"
        "finally:\n    print([name for name in ('torch', 'rich') if name in sys.modules])"
    )
    asked = {"COMP_WORDS": f"rwkv-runtime {command} --", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "_RWKV_RUNTIME_COMPLETE": "bash_complete", **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    *options, loaded = done.stdout.splitlines()
    assert "plain,--help" in options
    assert loaded == "[]"


def test_a_line_of_the_help_begins_as_the_command_does() -> None:
    context = click.Context(main)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None
        assert command.name == name


@pytest.mark.parametrize("name", rwkv_runtime.__all__)
def test_public_names_are_there(name: str) -> None:
    assert rwkv_runtime.__all__ == sorted(rwkv_runtime.__all__)
    assert getattr(rwkv_runtime, name).__module__.startswith("rwkv_runtime.")
    assert name in dir(rwkv_runtime)


@pytest.mark.parametrize("tuned", [False, True], ids=["plain", "tuned"])
def test_a_version_6_model_is_warm_in_a_second_process(
    document: Path, tmp_path: Path, *, tuned: bool
) -> None:
    path = tmp_path / "six.pth"
    write_old_weights(path, "6")
    common = ["--model", str(path), "--store", str(tmp_path / "states"), "--threads", "1"]
    ask = ["ask", *common, "--document", str(document), "--question", "One?", "--max-tokens", "4"]
    if tuned:
        write_tuned(tmp_path / "tuned.pth")
        ask += ["--initial-state", str(tmp_path / "tuned.pth")]
    refused = run(*ask)
    assert refused.returncode == 2
    assert "RWKV-6" in refused.stderr
    assert "--strategy" in refused.stderr
    rows = [run_json(*ask, "--strategy", "cpu fp32")["questions"][0] for _ in range(2)]
    assert [row["cached_tokens"] for row in rows] == [0, 920]
    assert rows[0]["logits_sha256"] == rows[1]["logits_sha256"]
    assert rows[0]["answer"] == rows[1]["answer"]


def test_a_terminal_shows_answers_without_the_bar(common: list[str], document: Path) -> None:
    questions = ("What was read?", "And then?")
    asked = [part for question in questions for part in ("--question", question)]
    with terminal("ask", *common, "--document", str(document), *asked) as (_, screen):
        seen = screen.until(rb"And then\?.*computed")
    assert b"reading" in seen, "no bar"
    for question in questions:
        line = seen.partition(question.encode())[0].rpartition(b"\n")[2]
        drawn = line.rpartition(b"\x1b[2K")[2].replace(b"\x1b[?25h", b"").replace(b"\x1b[1m", b"")
        assert not drawn.strip(), f"the question stands behind {drawn!r}"
