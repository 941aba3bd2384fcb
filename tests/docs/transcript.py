"""Console blocks of a document, run for real in one shell, in order.

A block begins with ```console. A line that begins with "$ " is typed, with the lines after it that
begin with "> "; the lines up to the next one are what it must print, stdout and stderr together.
There "…" stands for anything within a line (a time, a key), and a line of "…" alone for any lines.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ANYTHING = "…"


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what it prints."""

    line: int
    command: str
    output: tuple[str, ...]


def steps(document: str) -> Iterator[Step]:
    """Every step of every console block."""
    inside, started, command, output = False, 0, "", list[str]()
    for number, line in enumerate([*document.splitlines(), "```"], 1):
        fence, typed = line.startswith("```"), inside and line.startswith("$ ")
        if (fence or typed) and command:
            yield Step(started, command, tuple(output))
            command = ""
        if fence:
            inside = line == "```console"
        elif typed:
            started, command, output = number, line[2:], []
        elif inside and line.startswith("> ") and not output:
            command += "\n" + line[2:]
        elif inside:
            output.append(line)


def matches(expected: tuple[str, ...], printed: str) -> bool:
    """Whether `printed` is what a step says."""
    pattern = "".join(_line_pattern(line) for line in expected)
    lines = [line.rstrip() for line in printed.splitlines()]
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None


def _line_pattern(line: str) -> str:
    if line.strip() == ANYTHING:
        return r"(?:.*\n)*"
    return "[^\n]*".join(re.escape(part) for part in line.rstrip().split(ANYTHING)) + "\n"


class Shell:
    """One bash, which every step is typed into."""

    def __init__(self, directory: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def type(self, command: str) -> str:
        """Run a command; what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = secrets.token_hex(8)
        self._process.stdin.write(f"{command}\nprintf '\\n{mark}\\n'\n")
        self._process.stdin.flush()
        printed: list[str] = []
        for line in self._process.stdout:
            if line.strip() == mark:
                break
            printed.append(line)
        else:
            raise RuntimeError(f"the shell ended at: {command}")
        text = "".join(printed)
        return text.removesuffix("\n")  # the mark's own line break

    def close(self) -> None:
        """End the shell and whatever it started."""
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
