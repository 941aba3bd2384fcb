"""Puts behind the answer: a thread and a bounded queue between a session and its store.

A request hands a state over and goes on; encoding and writing happen here. The queue is short,
because states are large: when it stays full for `patience_s` the put is dropped, counted and
logged, and the request goes on. `flush` waits until all that was handed over is written; `close`
flushes. Nothing is lost on exit unless the process is killed, and then no half state is left (the
store's order of writes).
"""

from __future__ import annotations

import logging
import queue
import threading
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
        self._patience_s = patience_s
        self._queue: queue.Queue[Put | None] = queue.Queue(depth)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, put: Put, *, wait: bool = True) -> bool:
        """Hand a put over; ``False`` if it was dropped for want of room, waited for or not."""
        self._start()
        try:
            self._queue.put(put, block=wait, timeout=self._patience_s)
        except queue.Full:
            self.dropped += 1
            log.warning("dropped a put: the store is slower than the requests")
            return False
        return True

    def flush(self) -> None:
        """Return once everything handed over so far is written."""
        if self._thread is not None:
            self._queue.join()

    def close(self) -> None:
        """Flush, then end the thread; a second call does nothing."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                # A daemon, so that an interpreter which never closes its runtime can still end.
                self._thread = threading.Thread(target=self._run, name="state-writer", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (put := self._queue.get()) is not None:
            try:
                put()
            except Exception:  # must not end the thread: later puts would wait for ever
                log.exception("a put failed; the answer is not affected")
            finally:
                self._queue.task_done()
        self._queue.task_done()
