"""Wakes those who wait for a name, by one connection for all of them.

There is no thread of its own: one of those who wait reads for all, and hands that over when its own
wait is done. The connection is opened when somebody begins to wait and closed when nobody does.

A message may be lost (the connection broke, the server changed); so whoever waits looks for itself
from time to time, and at once when the connection broke. After a fork the child begins afresh.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from statestore.errors import UnavailableError
from statestore.forking import renew_in_child

_AGAIN_S: Final = 1.0  # between attempts to connect


class Line(Protocol):
    """A connection that hears names as they are told. For one thread at a time."""

    def read(self, seconds: float) -> list[str]:
        """The names of the next `seconds`, as soon as there is one.

        Raises:
            UnavailableError: it broke.
        """

    def close(self) -> None:
        """Hang up."""


class Ear:
    """One that waits; `rung` once its name was told."""

    __slots__ = ("rung",)

    def __init__(self) -> None:
        self.rung = False


class Bell:
    """Rings for the names that are told on a line. Safe to use from several threads.

    Args:
        listen: opens a line; raises `UnavailableError` where it cannot.
    """

    def __init__(self, listen: Callable[[], Line]) -> None:
        self._listen = listen
        self._line: Line | None = None
        self._inherited: list[Line] = []
        self.renew()
        renew_in_child(self)

    def renew(self) -> None:
        """Forget everybody: a forked child has neither its parent's threads nor its connection."""
        self._changed = threading.Condition()
        self._ears: dict[str, list[Ear]] = defaultdict(list)
        if self._line is not None:
            self._inherited.append(self._line)  # closing it here would hang up for the parent
        self._line = None
        self._busy = False  # somebody connects or reads
        self._connect_at = 0.0

    @contextmanager
    def ear(self, name: str) -> Iterator[Ear]:
        """Listen for `name`."""
        ear = Ear()
        with self._changed:
            self._ears[name].append(ear)
        try:
            yield ear
        finally:
            self._leave(name, ear)

    def hears(self) -> bool:
        """Whether what is told from now on will be heard; connects where nobody has yet.

        Raises:
            ClosedError: the place was closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._line is not None or not self._busy)
            if self._line is not None:
                return True
            if time.monotonic() < self._connect_at:
                return False
            self._busy = True
        line: Line | None = None
        try:
            line = self._listen()
        except UnavailableError:
            pass  # who waits looks for itself, and meets the reason
        finally:
            with self._changed:
                self._line = line
                self._connect_at = time.monotonic() + _AGAIN_S if line is None else 0.0
                self._busy = False
                self._changed.notify_all()
        return line is not None

    def wait(self, ear: Ear, seconds: float) -> None:
        """Until `ear` is rung, the connection breaks, or `seconds` have passed."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with self._changed:
                if ear.rung:
                    break
                if self._line is None or self._busy:
                    self._changed.wait(left)
                    continue
                line, self._busy = self._line, True
            self._read(line, left)
        ear.rung = False

    def _read(self, line: Line, seconds: float) -> None:
        """Read for everybody."""
        told: list[str] | None = []
        try:
            told = line.read(seconds)
        except UnavailableError:
            told = None
            line.close()
        finally:
            with self._changed:
                self._busy = False
                if told is None:
                    self._line = None
                for name in list(self._ears) if told is None else told:
                    for ear in self._ears.get(name, ()):
                        ear.rung = True
                self._changed.notify_all()

    def _leave(self, name: str, ear: Ear) -> None:
        line = None
        with self._changed:
            self._ears[name].remove(ear)
            if not self._ears[name]:
                del self._ears[name]
            if not self._ears:
                line, self._line = self._line, None
        if line is not None:
            line.close()
