"""Puts behind the answer: a thread and a bounded queue between a session and its store.

A request hands a state over and goes on; encoding and writing happen here. The queue is short,
because states are large. When it stays full for `patience_s` the put is dropped, counted and
logged, and the request goes on; until there is room again, later puts are dropped without a wait.

`flush` waits until all that was handed over is written; `close` flushes, and so does the end of the
interpreter. So nothing is lost unless the process is killed, and then no half state is left (the
store's order of writes). A forked child begins with an empty queue: what waits is its parent's.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

Put = Callable[[], object]


class Writer:
    """Runs puts in order on one thread, started at the first of them.

    Args:
        depth: puts that may wait.
        patience_s: seconds that `submit` waits for room before it drops.
    """

    def __init__(self, depth: int = 4, patience_s: float = 2.0) -> None:
        self.dropped = 0
        self._depth = depth
        self._patience_s = patience_s
        self._closed = False
        self._begin()

    @property
    def closed(self) -> bool:
        """Whether every put is dropped from now on."""
        return self._closed

    def submit(self, put: Put, *, wait: bool = True, small: bool = False) -> bool:
        """Hand a put over; ``False`` if it was dropped: for want of room, waited for or not, or
        after `close`. One that is `small`, holding no state, always has room.
        """
        with self._in_this_process():
            if self._closed if small else not self._has_room(wait=wait):
                self.dropped += 1
                return False
            self._start()
            self._waiting.append(put)
            self._submitted += 1
            self._changed.notify_all()
        return True

    def flush(self) -> None:
        """Return once everything handed over so far is written."""
        with self._in_this_process():
            last = self._submitted
            self._changed.wait_for(lambda: self._finished >= last)

    def close(self) -> None:
        """Flush, then end the thread; a second call does nothing. Later puts are dropped."""
        with self._in_this_process():
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
            atexit.unregister(self.close)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[Put] = deque()
        self._submitted = 0
        self._finished = 0
        self._stalled = False
        self._thread: threading.Thread | None = None

    def _in_this_process(self) -> threading.Condition:
        """The lock. A fork copies neither the thread nor, in a usable state, the lock."""
        if self._process != os.getpid():
            self._begin()
        return self._changed

    def _has_room(self, *, wait: bool) -> bool:
        """Whether there is room, now or soon; what was full a put ago is not waited for."""
        patience_s = self._patience_s if wait and not self._stalled else 0.0
        room = self._changed.wait_for(
            lambda: self._closed or len(self._waiting) < self._depth, patience_s
        )
        if self._closed:
            log.warning("dropped a put: the runtime was closed before it")
            return False
        if not room and not self._stalled:
            log.warning("dropping puts: the store is slower than the requests")
        self._stalled = not room
        return room

    def _start(self) -> None:
        if self._thread is None:
            # A daemon: the interpreter waits for other threads before it runs what `atexit` holds.
            self._thread = threading.Thread(target=self._run, name="state-writer", daemon=True)
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while (put := self._next()) is not None:
            try:
                put()
            # Whatever it is: a thread that ended would let flush wait for ever.
            except BaseException:
                log.exception("a put failed; the answer is not affected")
            del put  # it holds a state, and the next one may be long in coming
            with self._changed:
                self._finished += 1
                self._changed.notify_all()

    def _next(self) -> Put | None:
        """The next put, which leaves its place to another; ``None``: closed, and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            put = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return put
