"""docs/first-hour.md, typed as it stands."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.docs.transcript import Shell, matches, steps

DOCUMENT = ROOT / "docs" / "first-hour.md"
PORT = "8123"  # the document's; a free one takes its place


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def test_every_command_prints_what_the_document_says(tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TERM") if name in os.environ}
    environment = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    directory = tmp_path / "here"
    directory.mkdir()
    shell, port = Shell(directory, environment), free_port()
    try:
        for step in steps(DOCUMENT.read_text("utf-8").replace(PORT, port)):
            printed = shell.type(step.command)
            expected = "\n".join(step.output)
            assert matches(step.output, printed), (
                f"{DOCUMENT.name}:{step.line}: $ {step.command}\n"
                f"says:\n{expected}\nprinted:\n{printed}"
            )
    finally:
        shell.close()


@pytest.mark.parametrize(
    ("expected", "printed", "fits"),
    [
        (("a", "b"), "a\nb\n", True),
        (("a", "b"), "a\nc\n", False),
        (("took … ms",), "took 12 ms", True),
        (("took … ms",), "took 12 s", False),
        (("a", "…", "d"), "a\nb\nc\nd", True),
        (("a", "…", "d"), "a\nd", True),
        (("a", "…", "d"), "a\nb", False),
        (("…",), "", True),
        ((), "something", False),
        (("a (b)",), "a (b)  ", True),
    ],
)
def test_what_a_transcript_takes_as_the_same(
    expected: tuple[str, ...], printed: str, *, fits: bool
) -> None:
    assert matches(expected, printed) is fits


def test_steps_are_read_with_their_continued_lines() -> None:
    text = "```console\n$ a \\\n>  b\nout\n$ c\n```\n```sh\n$ d\n```\n"
    assert [(step.command, step.output) for step in steps(text)] == [
        ("a \\\n b", ("out",)),
        ("c", ()),
    ]
