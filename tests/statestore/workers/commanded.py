"""The `statestore` command in processes of its own, forked from one that has loaded everything:
what takes long about a new one is to load SQLAlchemy and the drivers.

That `python -m statestore` works, and what it loads, is tested beside.
"""

from __future__ import annotations

import atexit
import io
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import alembic.command  # noqa: F401 - loaded ahead
import psycopg  # noqa: F401
import rich.table  # noqa: F401

import statestore.backends.redis.backend
import statestore.backends.sql.fleet
import statestore.backends.sql.migrate
import statestore.backends.sql.revisions  # noqa: F401
from statestore.cli import main
from statestore.cli.main import _LINES

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.statestore.workers.commanded"])
WAIT_S = 240.0

for line in _LINES:
    line.load()


def command(arguments: tuple[str, ...], directory: str, environ: dict[str, str], cwd: str) -> None:
    """What the process does, its streams in files."""
    for stream, name in enumerate(("in", "out", "error")):
        opened = os.open(Path(directory, name), os.O_RDWR | os.O_CREAT)
        os.dup2(opened, stream)
        os.close(opened)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    try:
        main(list(arguments), prog_name="statestore")
    finally:
        atexit._run_exitfuncs()


def run(*arguments: str, stdin: str = "") -> CompletedProcess[str]:
    """One command, as a shell would run it."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "in").write_text(stdin, encoding="utf-8", errors="surrogateescape")
        given = (arguments, directory, dict(os.environ), str(Path.cwd()))
        process = CONTEXT.Process(target=command, args=given)
        process.start()
        process.join(WAIT_S)
        assert process.exitcode is not None, f"{arguments} hangs"
        out, error = (Path(directory, name).read_text("utf-8") for name in ("out", "error"))
        return CompletedProcess(arguments, process.exitcode, out, error)


def run_json(*arguments: str) -> Any:
    """What a command that succeeds says to a script."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
