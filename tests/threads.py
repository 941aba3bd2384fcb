"""What a module of tests leaves running: a runtime, a store or streams that nobody closed."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator

import pytest

WAIT_S = 30.0
#: Those that end with what they work for, by the names that the project gives its threads.
OURS = re.compile(
    r"(state-writer|write-behind|store-call|store-probe|decoder|reader-|asked|operator|document"
    r"|lane)"
)


def running() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if OURS.match(thread.name)}


@pytest.fixture(scope="module", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fails a module whose end leaves threads behind: what they serve was not closed."""
    before = running()
    yield
    deadline = time.monotonic() + WAIT_S
    while left := running() - before:
        names = sorted(thread.name for thread in left)
        assert time.monotonic() < deadline, f"left running, by something not closed: {names}"
        next(iter(left)).join(0.05)
