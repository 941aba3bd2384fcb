"""`statestore completion` in the shells themselves: bash, zsh on a terminal, fish."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.statestore.workers.commanded import run

PROGRAM = Path(sys.executable).with_name("statestore")
WORDS = [
    ("statestore st", "stats"),
    ("statestore stats --w", "--watch"),
    ("statestore --store post", "postgresql://"),
    ("statestore db u", "upgrade"),
]


def needed(shell: str) -> str:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"not run: no {shell} here; `make services` installs it")
    return path


@pytest.mark.parametrize(("typed", "expected"), WORDS)
def test_bash_completes(typed: str, expected: str) -> None:
    script = (
        f'eval "$({PROGRAM} completion bash)"\n'
        f"COMP_WORDS=({typed}) COMP_CWORD={len(typed.split()) - 1}\n"
        f'_statestore_completion {PROGRAM}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


def test_no_other_shell_is_known() -> None:
    assert run("completion", "cmd.exe").returncode == 2


@pytest.mark.parametrize(("typed", "expected"), WORDS)
def test_fish_completes(typed: str, expected: str, tmp_path: Path) -> None:
    fish = needed("fish")
    script = run("completion", "fish").stdout
    (tmp_path / "statestore.fish").write_text(script)
    asked = f"source {tmp_path}/statestore.fish; complete --do-complete '{typed}'"
    done = subprocess.run(
        [fish, "--no-config", "-c", asked],
        env={**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [expected]


@pytest.mark.parametrize(("typed", "expected"), WORDS)
def test_zsh_completes_as_it_is_typed(typed: str, expected: str, tmp_path: Path) -> None:
    zsh = needed("zsh")
    (tmp_path / "_statestore").write_text(run("completion", "zsh").stdout)
    (tmp_path / ".zshrc").write_text(
        f"PS1='ready> '\nfpath=({tmp_path} $fpath)\nautoload -Uz compinit\ncompinit -D -u\n"
        "unsetopt ZLE_RPROMPT_INDENT\n"
    )
    seen = typed_in(zsh, f"{typed}\t", expected, tmp_path)
    assert re.sub(r"\s", "", expected) in re.sub(r"\s", "", seen)


def typed_in(zsh: str, keys: str, until: str, home: Path) -> str:
    """What a terminal shows once `keys` were typed at a prompt."""
    keeper, terminal = pty.openpty()
    environment = {
        **os.environ,
        "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "TERM": "dumb",
        "COLUMNS": "200",
    }
    shell = subprocess.Popen(
        [zsh, "-i"], stdin=terminal, stdout=terminal, stderr=terminal, env=environment,
        start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        read_until(keeper, "ready> ")
        os.write(keeper, keys.encode())
        return read_until(keeper, until)
    finally:
        shell.kill()
        shell.wait()
        os.close(keeper)


def read_until(keeper: int, words: str) -> str:
    shown, ends = "", time.monotonic() + 120
    while words not in shown:
        assert time.monotonic() < ends, shown
        if select.select([keeper], [], [], 1.0)[0]:
            shown += os.read(keeper, 4096).decode(errors="replace")
    return shown
