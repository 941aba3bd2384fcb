"""The `rwkv-runtime` command in a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_S = 120.0


class Terminal:
    """What a person does and sees."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = b""

    def type(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    def until(self, words: bytes) -> bytes:
        """Read on to the end of the next match of the expression `words`; what came up to there."""
        deadline = time.monotonic() + WAIT_S
        while (found := re.search(words, self._unread, re.DOTALL)) is None:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, left_s))
            assert ready, f"no {words!r} in {self._unread[-500:]!r}"
            self._unread += os.read(self._descriptor, 1 << 16)
        seen, self._unread = self._unread[: found.end()], self._unread[found.end() :]
        return seen


@contextmanager
def terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Terminal]]:
    """The command with `arguments`, in a terminal of its own; it ends with the block."""
    ours, theirs = pty.openpty()

    def become_its_foreground() -> None:
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-m", "rwkv_runtime", *arguments]
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=become_its_foreground,  # noqa: PLW1509 - takes no lock that a thread could hold
    ) as running:
        os.close(theirs)
        try:
            yield running, Terminal(ours)
        finally:
            running.kill()
            os.close(ours)
