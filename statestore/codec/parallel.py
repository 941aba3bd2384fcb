"""A handful of frames on a handful of threads.

The work inside a frame (zstandard, NumPy, xxhash) lets go of the interpreter's lock. The caller
works too and never waits for a helper to begin: helpers, at most `MAX_THREADS` - 1 for the whole
process, join where there is something left to do. They are daemons, start when first needed, and a
forked child starts its own.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

MAX_THREADS = 4

Result = TypeVar("Result")


def default_threads() -> int:
    """As many as this process may run on, but no more than `MAX_THREADS`."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(MAX_THREADS, cores)


def for_each(
    count: int, threads: int | None, make_worker: Callable[[], Callable[[int], Result]]
) -> list[Result]:
    """``worker(i)`` for i in 0..count-1, in order; each thread makes itself a worker.

    The first error of a worker is raised here, after all threads have stopped.
    """
    wanted = default_threads() if threads is None else min(threads, MAX_THREADS)
    helpers = min(wanted, count) - 1
    if helpers <= 0:
        worker = make_worker()
        return [worker(i) for i in range(count)]
    job = _Job(count, make_worker)
    if not sys.is_finalizing():  # helpers stand still once the interpreter ends
        _HELPERS.call(job, helpers)
    job.work()
    return job.results()


class _Job(Generic[Result]):
    """Items that are worked off by whoever comes, until it is closed."""

    def __init__(self, count: int, make_worker: Callable[[], Callable[[int], Result]]) -> None:
        self._make_worker = make_worker
        self._todo = iter(range(count))  # `next` is one step under the interpreter's lock
        self._done: dict[int, Result] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._working = 0
        self._changed = threading.Condition(threading.Lock())

    def work(self) -> None:
        """Take items until none is left. Raises nothing."""
        with self._changed:
            if self._closed:
                return
            self._working += 1
        try:
            worker = self._make_worker()
            for i in self._todo:
                self._done[i] = worker(i)
        except BaseException as error:  # noqa: BLE001 - raised again by `results`
            self._error = self._error or error
            for _ in self._todo:  # the others need not go on
                pass
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify()

    def results(self) -> list[Result]:
        """Close, wait for those who are still at an item, and give what came out, in order."""
        with self._changed:
            self._closed = True
            while self._working:
                self._changed.wait()
        if self._error is not None:
            raise self._error
        return [self._done[i] for i in sorted(self._done)]


class _Helpers:
    """Threads that wait for jobs."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def call(self, job: _Job[Any], number: int) -> None:
        """Ask this many to join; with fewer, or none, the caller does the work."""
        self._start(number)
        for _ in range(min(number, self._running)):  # what nobody takes would be kept for ever
            self._jobs.put(job)

    def _start(self, number: int) -> None:
        # Not waited for: the one who starts them may be the one that a signal handler interrupted.
        if self._running >= number or not self._starting.acquire(blocking=False):
            return
        try:
            while self._running < number:
                threading.Thread(
                    target=_help, args=(self._jobs,), name="statestore-codec", daemon=True
                ).start()
                self._running += 1
        except RuntimeError:  # no more threads are to be had: go on alone
            pass
        finally:
            self._starting.release()

    def _forget(self) -> None:
        """A new process has none of the threads, nor may it wait for what they held."""
        self._jobs: SimpleQueue[_Job[Any]] = SimpleQueue()
        self._running = 0
        self._starting = threading.Lock()


def _help(jobs: SimpleQueue[_Job[Any]]) -> None:
    while True:
        job = jobs.get()
        job.work()
        del job  # its results are the caller's


_HELPERS = _Helpers()
