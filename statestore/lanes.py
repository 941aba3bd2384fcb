"""One function over a stream of things, by several threads, results in order.

Only a few things are in hand at a time, so a stream may be longer than memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

#: How many threads keep a disk or a server busy; more wait for each other.
LANES: Final = 4


def in_lanes(
    things: Iterable[Thing], work: Callable[[Thing], Result], lanes: int = LANES
) -> Iterator[Result]:
    """``work(thing)`` of each, in order; at most two for each of the `lanes` are begun and not
    taken.

    The first error, of `work` or of `things`, ends it once what was begun is done.
    """
    begun: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as threads:
        try:
            for thing in things:
                if len(begun) >= 2 * lanes:
                    yield begun.popleft().result()
                begun.append(threads.submit(work, thing))
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()
