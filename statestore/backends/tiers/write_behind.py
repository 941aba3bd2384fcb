"""Work in the background: one thread and one bounded queue.

Tasks run in order, one at a time. When the queue stays full for `patience_s`, a task is dropped,
counted and logged; until there is room again, later ones are dropped without waiting. Notes are
small: one may wait for each mark, a newer one replaces it, and those beyond `NOTES` are dropped.

`flush` waits until everything handed over so far is done; `close` flushes, and so does the end of
the process (`ending`). A forked child begins with an empty queue: what waits belongs to its parent.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Final

from statestore.backends.ending import at_end
from statestore.forking import renew_in_child
from statestore.keys import StateKey
from statestore.metrics import Metrics

log = logging.getLogger(__name__)

NOTES: Final = 10_000  # that may wait
CLOSE_S: Final = 30.0  # as long as `close` waits for what is left

Work = Callable[[], object]

_CANCELLED: Final = "cancelled"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait, and for how long a caller waits for room."""

    tasks: int = 64
    size_bytes: int = 256 << 20
    patience_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Task:
    """Something to do for one state."""

    kind: str  # "put" or "promotion"
    key: StateKey
    size_bytes: int  # of what it holds on to
    work: Work


class WriteBehind:
    """The queue and its thread, which is started at the first task.

    Args:
        bounds: how much may wait.
        metrics: counts what was done, failed and was dropped.
    """

    def __init__(self, bounds: Bounds | None = None, metrics: Metrics | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._metrics = metrics or Metrics()
        self._closed = False
        self.renew()
        renew_in_child(self)
        at_end(self)

    def submit(self, task: Task, *, wait: bool = True) -> bool:
        """Hand a task over; ``False`` if it was dropped, for want of room or after `close`."""
        with self._changed:
            if not self._has_room(task, wait=wait):
                self._count(task.kind, "dropped")
                return False
            self._tasks.append(task)
            self._hold(task.size_bytes)
            self._submitted += 1
            started = self._start()
            self._changed.notify_all()
        if not started:
            self._work_off()
        return True

    def note(self, mark: Hashable, work: Work) -> None:
        """Hand over something that may be lost; it takes the place of one with the same mark."""
        with self._changed:
            if self._closed or (mark not in self._notes and len(self._notes) >= NOTES):
                self._count("note", "dropped")
                return
            self._noted += mark not in self._notes
            self._notes[mark] = work
            self._start()
            self._changed.notify_all()

    def waits(self, kind: str, key: StateKey) -> bool:
        """Whether such a task waits already."""
        with self._changed:
            return any(task.kind == kind and task.key == key for task in self._tasks)

    def cancel(self, kind: str, key: StateKey) -> None:
        """Take such tasks back if they have not begun. Their places in the queue stay: `flush`
        counts by them.
        """
        with self._changed:
            for place, task in enumerate(self._tasks):
                if (task.kind, task.key) == (kind, key):
                    self._hold(-task.size_bytes)
                    self._tasks[place] = replace(task, kind=_CANCELLED, size_bytes=0, work=_nothing)
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> bool:
        """Return once all handed over so far is done; ``False``: `timeout_s` passed."""
        with self._changed:
            if threading.current_thread() is self._thread:
                return False  # a task that waited for itself would wait for ever
            tasks, notes = self._submitted, self._noted
            return self._changed.wait_for(
                lambda: self._finished >= tasks and self._notes_done >= notes, timeout_s
            )

    def close(self) -> None:
        """Flush, then end the thread; a second call does nothing. What comes later is dropped."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self.flush(CLOSE_S):
            return
        with self._changed:
            for task in self._tasks:
                self._count(task.kind, "dropped")
            log.warning("closed a store with %d puts undone", len(self._tasks))
            self._tasks.clear()
            self._notes.clear()

    def renew(self) -> None:
        """Begin with nothing to do, as a forked child does: what waits is its parent's."""
        self._changed = threading.Condition()  # guards what follows
        self._tasks: deque[Task] = deque()
        self._notes: dict[Hashable, Work] = {}
        self._held_bytes = 0  # by tasks that wait, and by the one that runs
        self._submitted = self._finished = 0
        self._noted = self._notes_done = 0
        self._stalled = False
        self._thread: threading.Thread | None = None

    def _hold(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        self._metrics.write_behind_bytes.set(self._held_bytes)

    def _count(self, kind: str, outcome: str) -> None:
        self._metrics.write_behind.labels(kind=kind, outcome=outcome).inc()

    def _has_room(self, task: Task, *, wait: bool) -> bool:
        """Whether there is room, now or soon. A queue that was full for the last task is not waited
        for.
        """
        patience_s = self._bounds.patience_s if wait and not self._stalled else 0.0
        room = self._changed.wait_for(lambda: self._closed or self._fits(task), patience_s)
        if self._closed:
            log.warning("dropped a %s of %s: the store was closed before it", task.kind, task.key)
            return False
        if wait:
            if not room and not self._stalled:
                log.warning("dropping puts: further tiers are slower than the requests")
            self._stalled = not room
        return room

    def _fits(self, task: Task) -> bool:
        if not self._held_bytes and not self._tasks:
            return True  # one that is larger than the bound goes alone
        held = self._held_bytes + task.size_bytes
        return len(self._tasks) < self._bounds.tasks and held <= self._bounds.size_bytes

    def _start(self) -> bool:
        """See to it that somebody works; ``False``: at the interpreter's end nobody can."""
        if self._thread is None:
            # A daemon: the interpreter waits for other threads before it runs what `atexit` holds.
            thread = threading.Thread(target=self._run, name="write-behind", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return False
            self._thread = thread
        return True

    def _work_off(self) -> None:
        while (work := self._next(wait=False)) is not None:
            work()

    def _run(self) -> None:
        while (work := self._next(wait=True)) is not None:
            work()
            del work  # it holds a state, and the next one may be long in coming

    def _next(self, *, wait: bool) -> Work | None:
        """What to do next; ``None``: closed, or not to `wait`, and nothing is left.

        Tasks go first; behind each one goes a note, so that neither keeps the other waiting.
        """
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._tasks or self._notes or self._closed)
            task = self._tasks.popleft() if self._tasks else None
            mark = next(iter(self._notes), None)
            note = None if mark is None else self._notes.pop(mark)
            if task is None and note is None:
                return None
            return lambda: self._do(task, note)

    def _do(self, task: Task | None, note: Work | None) -> None:
        if task is not None:
            outcome = "done" if self._attempt(task.kind, task.work) else "failed"
            with self._changed:
                self._finished += 1
                self._hold(-task.size_bytes)
                if task.kind != _CANCELLED:
                    self._count(task.kind, outcome)
                self._changed.notify_all()
        if note is not None:
            self._attempt("note", note)
            with self._changed:
                self._notes_done += 1
                self._changed.notify_all()

    def _attempt(self, kind: str, work: Work) -> bool:
        try:
            return work() is not False
        # Whatever it is: a thread that ended would let flush wait for ever.
        except BaseException:
            log.exception("a %s failed behind the requests", kind)
            return False


def _nothing() -> None:
    """The work of a task that was taken back."""
