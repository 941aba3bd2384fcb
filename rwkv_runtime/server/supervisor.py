"""The process that keeps the workers: starts them, restarts them when they die, ends them.

Workers are forked from it, with the weights that it has loaded: they share that memory, and a new
one is ready in a moment. So this process computes nothing and keeps no threads; torch's would not
survive in a child.

SIGTERM and SIGINT end the server, and so does SIGHUP, unless `nohup` has it ignored: workers take
no more connections, finish their streams, and write what waits to be stored. A second signal ends
it at once. A worker that dies is replaced at once; if its successors die as well, after a pause
that grows to 30 s. Workers whose supervisor is killed end by themselves.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from rwkv_runtime.server import worker
from rwkv_runtime.server.instruments import forget_gauges
from rwkv_runtime.server.worker import Setup
from statestore.errors import StateStoreError

log = logging.getLogger(__name__)

LONGEST_PAUSE_S: Final = 30.0
STEADY_S: Final = 30.0  # a worker that lived as long has not failed at its start
OVERTIME_S: Final = 15.0  # beyond the streams' time: to write what waits, and to end


@dataclass(slots=True)
class _Place:
    """Of one worker."""

    number: int
    pid: int = 0  # 0: none
    ready_pipe: int = -1
    ready: bool = False
    started_at: float = 0.0
    failures: int = 0  # in a row
    start_at: float = 0.0  # not before


@dataclass(slots=True)
class Supervisor:
    """Runs a server's workers. For the main thread.

    Args:
        setup: what each of them serves.
        workers: how many.
        announce: called once, when all are ready for the first time.
    """

    setup: Setup
    workers: int
    announce: Callable[[], None]
    _places: list[_Place] = field(init=False)
    _signals: int = field(init=False, default=0)
    _announced: bool = field(init=False, default=False)
    _any_ready: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._places = [_Place(number) for number in range(self.workers)]

    def run(self) -> int:
        """Serve until a signal; the exit code. One that is not 0 is that of a worker which could
        not even start.
        """
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        lifeline, alive = os.pipe2(os.O_CLOEXEC)
        handlers = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGTERM, self._note),
                (signal.SIGINT, self._note),
                (signal.SIGHUP, self._note),
                (signal.SIGCHLD, lambda *_: None),
            )
            if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP
        }
        old = signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        gc.freeze()  # what is here is shared: a child's collector is not to write to it
        try:
            return self._keep(wake, lifeline, (wake, waker, alive))
        finally:
            self._kill()
            signal.set_wakeup_fd(old)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for descriptor in (wake, waker, lifeline, alive):
                os.close(descriptor)

    def _note(self, *_: object) -> None:
        self._signals += 1

    def _keep(self, wake: int, lifeline: int, not_theirs: tuple[int, ...]) -> int:
        while not self._signals:
            for place in self._places:
                if not place.pid and time.monotonic() >= place.start_at:
                    self._start(place, lifeline, not_theirs)
            self._wait(wake, self._until_next_start())
            code = self._bury()
            if code and not self._any_ready:
                log.error("no worker could begin: the server ends")
                return code
        return self._end(wake)

    def _start(self, place: _Place, lifeline: int, not_theirs: tuple[int, ...]) -> None:
        told, teller = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            others = [each.ready_pipe for each in self._places if each.ready_pipe >= 0]
            run = partial(worker.run, self.setup, place.number, lifeline, successor=self._announced)
            _become_worker(run, place.number, teller, [*not_theirs, told, *others])
        os.close(teller)
        if place.failures:
            log.info("worker %d begins again, as pid %d", place.number, pid)
        place.pid, place.ready_pipe, place.ready = pid, told, False
        place.started_at = time.monotonic()

    def _until_next_start(self) -> float | None:
        due = [place.start_at for place in self._places if not place.pid]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _wait(self, wake: int, timeout_s: float | None) -> None:
        """Until a signal, a worker that is ready, or the timeout."""
        pipes = {p.ready_pipe: p for p in self._places if p.ready_pipe >= 0}
        readable, _, _ = select.select([wake, *pipes], [], [], timeout_s)
        for descriptor in readable:
            if descriptor == wake:
                os.read(wake, 4096)
                continue
            place = pipes[descriptor]
            place.ready = bool(os.read(descriptor, 1))
            self._close_pipe(place)
            self._any_ready |= place.ready
        if not self._announced and all(place.ready for place in self._places):
            self._announced = True
            self.announce()

    def _bury(self) -> int:
        """Take note of workers that have died; the exit code of one, if any."""
        code = 0
        for place in self._places:
            pid, status = os.waitpid(place.pid, os.WNOHANG) if place.pid else (0, 0)
            if pid:
                code = os.waitstatus_to_exitcode(status) or code
                self._note_death(place, os.waitstatus_to_exitcode(status))
        return code

    def _note_death(self, place: _Place, code: int) -> None:
        lived_s = time.monotonic() - place.started_at
        place.failures = place.failures + 1 if not place.ready or lived_s < STEADY_S else 1
        pause_s = 0.0 if place.failures < 2 else min(0.5 * 2**place.failures, LONGEST_PAUSE_S)
        place.start_at = time.monotonic() + pause_s
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.warning("worker %d (pid %d) ended with %s", place.number, place.pid, how)
        place.pid = 0
        self._close_pipe(place)
        forget_gauges(self.setup.figures, place.number)

    def _end(self, wake: int) -> int:
        """Have all workers finish; at a second signal, or when they take too long, kill them."""
        log.info("shutting down: streams have %g s to end", self.setup.settings.shutdown_s)
        self._send(signal.SIGTERM)
        until = time.monotonic() + self.setup.settings.shutdown_s + OVERTIME_S
        while any(place.pid for place in self._places):
            left_s = until - time.monotonic()
            if self._signals > 1 or left_s <= 0:
                log.warning("ending %s", "at once" if left_s > 0 else "workers that do not end")
                return 1
            self._wait(wake, left_s)
            self._reap()
        return 0

    def _reap(self) -> None:
        for place in self._places:
            if place.pid and os.waitpid(place.pid, os.WNOHANG)[0]:
                place.pid = 0
                self._close_pipe(place)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)
        for place in self._places:
            if place.pid:
                os.waitpid(place.pid, 0)
                place.pid = 0
            self._close_pipe(place)

    def _send(self, number: signal.Signals) -> None:
        for place in self._places:
            if place.pid:
                os.kill(place.pid, number)

    def _close_pipe(self, place: _Place) -> None:
        if place.ready_pipe >= 0:
            os.close(place.ready_pipe)
            place.ready_pipe = -1


def _become_worker(
    run: Callable[[Callable[[], None]], int], number: int, teller: int, not_mine: list[int]
) -> None:
    """What a forked child does; it never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for each in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all; one decides
            signal.signal(each, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in not_mine:
            os.close(descriptor)

        def ready() -> None:
            os.write(teller, b"r")
            os.close(teller)

        code = run(ready)
    except StateStoreError as error:
        log.error("worker %d: %s", number, error)  # noqa: TRY400 - a line, as commands have it
        code = error.exit_code
    except BaseException:
        log.exception("worker %d failed", number)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
