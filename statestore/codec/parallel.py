"""A handful of frames on a handful of threads.

The work inside a frame (zstandard, NumPy, xxhash) lets go of the interpreter's lock. Threads live
for one call: there is no pool to share, to fork or to shut down.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

MAX_THREADS = 4
SHARE = 4  # frames that are worth starting a thread for

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
    wanted = min(default_threads(), count // SHARE) if threads is None else min(threads, count)
    used = max(1, wanted)
    todo = iter(range(count))
    if used == 1:
        return [result for _, result in _drain(todo, make_worker)]
    with ThreadPoolExecutor(used - 1, "statestore-codec") as pool:
        shares: list[Future[list[tuple[int, Result]]]] = []
        with suppress(RuntimeError):  # the interpreter is ending and starts no threads: go on alone
            shares.extend(
                pool.submit(lambda: list(_drain(todo, make_worker))) for _ in range(used - 1)
            )
        done = list(_drain(todo, make_worker))
    for share in shares:
        done += share.result()
    return [result for _, result in sorted(done, key=lambda pair: pair[0])]


def _drain(
    todo: Iterator[int], make_worker: Callable[[], Callable[[int], Result]]
) -> Iterator[tuple[int, Result]]:
    worker = make_worker()
    for i in todo:
        yield i, worker(i)
