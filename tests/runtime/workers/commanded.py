"""The `rwkv-runtime` command in processes of its own, forked from one that has loaded everything:
what takes long about a new one is to load PyTorch.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path
from subprocess import CompletedProcess

import click

from rwkv_runtime.__main__ import main

for _name in main.list_commands(click.Context(main)):
    main.get_command(click.Context(main), _name)  # its modules are loaded once, for all processes

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.runtime.workers.commanded"])
WAIT_S = 240.0


def command(arguments: tuple[str, ...], directory: str) -> None:
    """What the process does, its streams in files; signals as a shell in a terminal has them, even
    where the tests run in the background.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, name in enumerate(("in", "out", "error")):
        opened = os.open(Path(directory, name), os.O_RDWR | os.O_CREAT)
        os.dup2(opened, stream)
        os.close(opened)
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False))
    main(list(arguments), prog_name="rwkv-runtime")


def run(*arguments: str, stdin: str = "") -> CompletedProcess[str]:
    """One command, as a shell would run it."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "in").write_text(stdin, encoding="utf-8", errors="surrogateescape")
        process = CONTEXT.Process(target=command, args=(arguments, directory))
        process.start()
        process.join(WAIT_S)
        assert process.exitcode is not None, f"{arguments} hangs"
        out, error = (Path(directory, name).read_text("utf-8") for name in ("out", "error"))
        return CompletedProcess(arguments, process.exitcode, out, error)
