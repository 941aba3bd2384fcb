"""Puts behind the answer: a thread and a bounded queue between a session and its store.

A request hands a state over and goes on; encoding and writing happen here. The queue is short,
because states are large. Where it is full,

* a put that may be dropped gives way to one that should not be;
* else the request waits. If the queue stays full for `patience_s`, the oldest put that may be
  dropped, or else the new one, is dropped, counted and logged, and the request goes on. Until there
  is room again, nobody waits;
* a request that cannot wait, as its answer has begun, hands over a prompt's end, which the next
  prompt continues from. For those there is as much room again.

`flush` waits until everything handed over is written. `close` flushes, and so do the end of the
interpreter and, where `statestore.backends.ending` handles it, SIGTERM. So nothing is lost unless
the process is killed, and then no half-written state is left (the store's order of writes). A
forked child begins with an empty queue: what waits belongs to its parent.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from statestore.backends.ending import at_end
from statestore.forking import renew_in_child

log = logging.getLogger(__name__)

Put = Callable[[], object]

#: Puts without a state that may wait.
SMALL: Final = 1000


@dataclass(frozen=True, slots=True)
class _Waiting:
    number: int
    put: Put
    small: bool
    drop: Put | None


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
        self.renew()
        renew_in_child(self)
        at_end(self)

    def renew(self) -> None:
        """Begin with nothing to do, as a forked child does: it has neither the thread nor, in a
        usable state, the lock.
        """
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[_Waiting] = deque()
        self._submitted = 0
        self._running = 0  # the number of the put that runs; 0: none does
        self._stalled = False
        self._thread: threading.Thread | None = None

    @property
    def closed(self) -> bool:
        """Whether every put is dropped from now on."""
        return self._closed

    def submit(
        self, put: Put, *, wait: bool = True, small: bool = False, drop: Put | None = None
    ) -> bool:
        """Hand a put over; ``False`` if it was dropped: for want of room, or after `close`.

        Args:
            put: what to run.
            wait: whether to wait for room; a put that does not has twice as much.
            small: it holds no state; `SMALL` of them have room, and take none.
            drop: called if it later gives way to another put; ``None``: it should not.
        """
        depth = self._depth if wait else 2 * self._depth
        gone = self._give_way(depth) if drop is None and not small else None
        try:
            with self._changed:
                if not small and not self._has_room(depth, wait=wait):
                    gone = gone or self._give_way(depth)
                if self._closed or not (self._small_room() if small else self._room(depth)):
                    self.dropped += 1
                    return False
                self._start()
                self._submitted += 1
                self._waiting.append(_Waiting(self._submitted, put, small, drop))
                self._changed.notify_all()
                return True
        finally:
            if gone is not None:
                gone()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return once everything handed over so far is written; ``False``: `timeout_s` passed."""
        with self._changed:
            last = self._submitted
            return self._changed.wait_for(lambda: self._first_left() > last, timeout_s)

    def close(self) -> None:
        """Flush, then end the thread; a second call does nothing. Later puts are dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join()
            atexit.unregister(self.close)

    def _give_way(self, depth: int) -> Put | None:
        """Take one out if there is no room; returns what is to be called for it."""
        with self._changed:
            if self._closed or self._room(depth):
                return None
            gone = next((waiting for waiting in self._waiting if waiting.drop is not None), None)
            if gone is None:
                return None
            self._waiting.remove(gone)
            self.dropped += 1
            return gone.drop

    def _room(self, depth: int) -> bool:
        return sum(not waiting.small for waiting in self._waiting) < depth

    def _small_room(self) -> bool:
        return sum(waiting.small for waiting in self._waiting) < SMALL

    def _first_left(self) -> int:
        """The number of the first put that is not done yet, or the next one to come."""
        if self._running:
            return self._running
        return self._waiting[0].number if self._waiting else self._submitted + 1

    def _has_room(self, depth: int, *, wait: bool) -> bool:
        """Whether there is room, now or soon. A queue that was full for the last put is not waited
        for.
        """
        patience_s = self._patience_s if wait and not self._stalled else 0.0
        room = self._changed.wait_for(lambda: self._closed or self._room(depth), patience_s)
        if self._closed:
            log.warning("dropped a put: the runtime was closed before it")
            return False
        if not room and not self._stalled:
            log.warning("dropping puts: the store is slower than the requests")
        if wait or not room:  # the other room says nothing of this one
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
                self._running = 0
                self._changed.notify_all()

    def _next(self) -> Put | None:
        """The next put, which leaves its place to another; ``None``: closed, and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            waiting = self._waiting.popleft()
            self._running = waiting.number
            self._changed.notify_all()
            return waiting.put
