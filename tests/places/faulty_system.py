"""A process whose system fails: what it reads, writes, syncs, renames and opens ends in the errors
that a test chooses, and its wall clock is off by as much as it says. Both change at any moment.

The process runs `faulty_worker` with `faulty_system.c` preloaded, which is compiled once: a C
compiler belongs to what these tests need, and without one they fail. Nothing in it knows that it is
tested; errors come from where they would come from, the C library.
"""

from __future__ import annotations

import ast
import atexit
import ctypes
import functools
import mmap
import os
import select
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.checkout import ROOT
from tests.statestore.workers.forked import command

SOURCE = Path(__file__).with_name("faulty_system.c")
ALWAYS = (1 << 32) - 1
HALF, NOTHING = -1, -2  # in place of an errno: a read or write falls short
ANSWER_S = 60.0  # far beyond what any call here may take
_RULES = 8
CALLS = ("open", "read", "write", "sync", "rename", "unlink", "resize", "mkdir")


class WorkerError(Exception):
    """What was asked of a worker raised: the kind of error and its message."""


class _Rule(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("after", ctypes.c_uint32),
        ("times", ctypes.c_uint32),
        ("met", ctypes.c_uint32),
        ("part", ctypes.c_char * 108),
    ]


class _Table(ctypes.Structure):
    _fields_ = [("clock_s", ctypes.c_double), ("rules", _Rule * _RULES)]


@functools.cache
def _library() -> Path:
    """Compiled when it is first wanted."""
    compiler = shutil.which(os.environ.get("CC", "") or "cc") or shutil.which("gcc")
    assert compiler, "these tests need a C compiler: install gcc"
    made = Path(tempfile.mkdtemp(prefix="faulty-system-")) / "faulty_system.so"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([compiler, *flags, "-o", made, SOURCE, "-ldl"], check=True)
    return made


class FaultySystem:
    """One process, which opens the store that it is told to, and what its system does to it."""

    def __init__(self) -> None:
        self._unheard = 0  # questions
        self._directory = tempfile.mkdtemp(prefix="faulty-")
        path = Path(self._directory) / "table"
        path.write_bytes(bytes(ctypes.sizeof(_Table)))
        with path.open("r+b") as file:
            self._mapped = mmap.mmap(file.fileno(), 0)
        self._table = _Table.from_buffer(self._mapped)
        self._rules = 0
        self._log = Path(self._directory) / "log"
        environ = {"LD_PRELOAD": str(_library()), "FAULTY_SYSTEM": str(path)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command("tests.statestore.workers.faulty_worker"),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **environ},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        for end in (self.process.stdin, self.process.stdout):
            assert end is not None
            with suppress(BrokenPipeError):
                end.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def log(self) -> str:
        """What the process has written to its standard error."""
        return self._log.read_text(errors="replace")

    def fail(self, call: str, part: str, error: int, *, after: int = 0, times: int = ALWAYS) -> int:
        """From now on `call` ends in `error` where the path holds `part` (with ``$`` behind it:
        ends with it), after so many that go well, so many times. The rule's number, for `met`.
        """
        rule = self._table.rules[self._rules]
        rule.part, rule.error, rule.after, rule.times, rule.met = (
            *(part.encode(), error, after, times, 0),
        )
        rule.call = 1 + CALLS.index(call)  # last: from here on it counts
        self._rules += 1
        return self._rules - 1

    def met(self, rule: int = 0) -> int:
        """How often this rule has struck."""
        return int(self._table.rules[rule].met)

    def heal(self) -> None:
        """Nothing fails any more."""
        for rule in self._table.rules:
            rule.call = 0
        self._rules = 0

    def clock(self, ahead_s: float) -> None:
        """The wall clock is so far ahead of the system's."""
        self._table.clock_s = ahead_s

    def tell(self, question: str) -> None:
        """Ask for the value of an expression over the names of `faulty_worker`; see `hear`."""
        assert self.process.stdin is not None
        self._unheard += 1
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        """The value. Raises `WorkerError` with what was raised there."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_S)
        assert ready, f"no answer within {ANSWER_S:g} s: {self.log}"
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait(ANSWER_S)}: {self.log}"
        self._unheard -= 1
        well, value = ast.literal_eval(line)
        if not well:
            raise WorkerError(value)
        return value

    @property
    def fit(self) -> bool:
        """Whether it lives, and has answered every question."""
        return self.process.poll() is None and self._unheard == 0

    def ask(self, question: str) -> Any:
        """The value of an expression over the names of `faulty_worker`. Raises `WorkerError`."""
        self.tell(question)
        return self.hear()


_shared: list[FaultySystem] = []


def shared_systems(count: int) -> list[FaultySystem]:
    """Processes that most tests share: they start slowly. Well, at the right time, and closed."""
    for system in [each for each in _shared if not each.fit]:  # a test failed in the midst of it
        system.end()
        _shared.remove(system)
    while len(_shared) < count:
        _shared.append(FaultySystem())
        atexit.register(_shared[-1].end)
    for system in _shared[:count]:
        system.heal()
        system.clock(0.0)
        system.ask("close()")
    return _shared[:count]
