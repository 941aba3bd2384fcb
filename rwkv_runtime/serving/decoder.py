"""The thread that computes: decode steps of all streams, quick jobs, a chunk of a prompt.

Streams wait for one chunk at most between two steps, however many prompts are read. After a chunk
they have as much time as it took: where there are both, each gets half of the processor.

Streams join and leave between steps. What goes wrong with one (logits that are not numbers, a
sampling error) ends that one. A step that fails ends all streams that took part, with its error,
and computing goes on with new ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rwkv_runtime.engines import Engine, EngineState
from rwkv_runtime.generation import Continuation
from rwkv_runtime.sampling import likeliest
from rwkv_runtime.serving.events import Ended, Failed, Piece, Reason
from rwkv_runtime.serving.jobs import Jobs
from rwkv_runtime.serving.lanes import lanes_for
from rwkv_runtime.serving.ticket import Ticket
from statestore.errors import ClosedError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Row:
    """A stream in its place."""

    ticket: Ticket
    text: Continuation
    state: EngineState | None  # until it has joined


class Decoder:
    """Carries streams on, and computes for those who read.

    Args:
        engine: computes; nobody else should use it at the same time.
        width: places for streams.

    Attributes:
        jobs: what others want computed.
        steps: done since the beginning.
        ready: the thread is there, and has computed once.
    """

    def __init__(self, engine: Engine, width: int) -> None:
        self.steps = 0
        self.ready = False
        self._engine = engine
        self._width = width
        self._lanes = lanes_for(engine, width)
        self._rows: dict[int, _Row] = {}  # the thread's own, as the next
        self._owed_s = 0.0  # to the streams
        self._changed = threading.Condition()  # guards what follows
        self.jobs = Jobs(self._changed)
        self._line: deque[Ticket] = deque()
        self._entering: list[_Row] = []
        self._taken = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """How many places are taken."""
        return self._taken

    @property
    def ended(self) -> bool:
        """Whether nothing is computed any more."""
        return not self._thread.is_alive()

    def enter(self, ticket: Ticket, text: Continuation, state: EngineState) -> None:
        """Have a stream carried on; waits for a place, first come first served.

        Raises:
            CancelledError: it was cancelled meanwhile.
            ClosedError: nothing is computed any more.
        """
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(lambda: self._closed or ticket.over or self._may_go(ticket))
                ticket.check()
                if self._closed:
                    raise ClosedError("no text is carried on any more: the server has closed")
                self._taken += 1
                self._entering.append(_Row(ticket, text, state))
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()

    def wake(self) -> None:
        """Something was cancelled."""
        with self._changed:
            self._changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """End the thread once nothing is left to do; ``False``: `timeout_s` passed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def forget(self) -> None:
        """Be closed, as in a forked child: the thread, and all that it has, is its parent's."""
        self._changed = threading.Condition()  # the old one may be shut for ever
        self.ready, self._closed, self._taken = False, True, 0

    def _may_go(self, ticket: Ticket) -> bool:
        return ticket.cancelled or (self._line[0] is ticket and self._taken < self._width)

    # The thread.

    def _run(self) -> None:
        try:
            self._lanes.step({})  # what the first step costs, nobody waits for
            self.ready = True
            while self._round():
                pass
        except BaseException:
            log.exception("the thread that computes has ended; nothing is computed any more")
        finally:
            self._end()

    def _round(self) -> bool:
        """A step, and a chunk where it is time; ``False``: closed, and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_busy() or self._closed)
            if not self._is_busy():
                return False
            entering, self._entering = self._entering, []
        for row in entering:
            self._join(row)
        self._drop_cancelled()
        if self._rows:
            self._owed_s -= _timed(self._step)
        self.jobs.run_quick()
        if self._owed_s <= 0 or not self._rows:
            self._owed_s = _timed(self.jobs.run_chunk)
        return True

    def _is_busy(self) -> bool:
        return bool(self._rows or self._entering or self.jobs.waiting)

    def _join(self, row: _Row) -> None:
        try:
            self._rows[self._lanes.join(row.state)] = row
            row.state = None
        except Exception as error:
            log.exception("a stream could not join")
            self._free()
            row.ticket.end(Failed(error))

    def _drop_cancelled(self) -> None:
        gone = [p for p, row in self._rows.items() if row.ticket.cancelled or row.ticket.over]
        for place in gone:
            self._leave(place, "cancelled")

    def _step(self) -> None:
        """One more token of every stream."""
        rows = list(self._rows.items())
        try:
            logits = self._lanes.step({place: row.text.token for place, row in rows})
            best = likeliest(logits) if any(row.text.is_plain for _, row in rows) else None
            logits = logits.cpu()
        except Exception as error:
            log.exception("a step failed; its %d streams end", len(rows))
            self._lanes = lanes_for(self._engine, self._width)
            self._fail_all(error)
            return
        self.steps += 1
        for number, (place, row) in enumerate(rows):
            token = None if best is None or not row.text.is_plain else best[number]
            self._go_on(place, row, logits[number], token)

    def _go_on(self, place: int, row: _Row, logits: Tensor, token: int | None) -> None:
        """Take the next token: the one that was found for all, or what is chosen here."""
        try:
            new = row.text.take(row.text.choose(logits) if token is None else token)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this stream's alone
            self._leave(place, error)
            return
        if new is not None:
            row.ticket.tell(Piece(new.token, new.text))
        if row.text.ended is not None:
            self._leave(place, row.text.ended)

    def _leave(self, place: int, why: Reason | Exception) -> None:
        row = self._rows.pop(place)
        self._lanes.drop(place)
        self._free()
        _end(row, why)

    def _free(self) -> None:
        with self._changed:
            self._taken -= 1
            self._changed.notify_all()

    def _fail_all(self, error: Exception) -> None:
        rows, self._rows = list(self._rows.values()), {}
        for row in rows:
            self._free()
            row.ticket.end(Failed(error))

    def _end(self) -> None:
        """Nobody waits for what will not come."""
        with self._changed:
            self.ready, self._closed = False, True
            entering, self._entering = self._entering, []
            self._changed.notify_all()
        for row in entering:
            row.ticket.end(Failed(_gone()))
        self._fail_all(_gone())
        self.jobs.close()


def _timed(work: Callable[[], None]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _end(row: _Row, why: Reason | Exception) -> None:
    if isinstance(why, Exception):
        row.ticket.end(Failed(why))
    else:
        row.ticket.end(Ended(why, row.text.count))


def _gone() -> ClosedError:
    return ClosedError("the text ends here: the server has closed")
