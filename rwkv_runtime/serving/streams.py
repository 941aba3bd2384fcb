"""Many requests at once over one runtime: a bounded queue, threads that read, one that computes.

    submit -> queue -> a reader: longest stored prefix, the chunks after it, the first token
                                 |            (computed in turns by the decoder's thread)
                                 `-> a place in the decoder: one token in each step, until it ends

A reader waits for the store and for others' reading, and computes nothing by itself. So there may
be many: readers that wait for one document keep nobody from reading another. At most one state is
held for each place and each reader.

A stream's text is a function of its prompt, its sampling and the width: neither its neighbours nor
the time of its arrival changes a bit. A store that is down costs computing, here as elsewhere.

A forked child has none of the threads: there the streams are closed, and report to nobody.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rwkv_runtime.errors import BusyError
from rwkv_runtime.runtime import Runtime
from rwkv_runtime.serving.decoder import Decoder
from rwkv_runtime.serving.events import Ended, Failed, Load, OnEvent, Piece, Request, Started
from rwkv_runtime.serving.ticket import CancelledError, Ticket
from rwkv_runtime.session import Prefill
from rwkv_runtime.session.reading import Progress
from statestore.errors import ClosedError, InputError
from statestore.forking import renew_in_child
from statestore.keys import Namespace, Tokens

log = logging.getLogger(__name__)

_LEAST_RETRY_S: Final = 1.0
_MOST_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    ticket: Ticket
    since: float


class Streams:
    """Continuous batching over a runtime. Safe to use from several threads.

    Args:
        runtime: reads and stores; its caller closes it, afterwards.
        width: streams that are decoded side by side, one of `engines.batch.WIDTHS`.
        readers: prompts that are read at the same time, and documents.
        waiting: requests that may wait for a reader.
    """

    def __init__(
        self, runtime: Runtime, *, width: int = 32, readers: int = 16, waiting: int = 64
    ) -> None:
        for name, value in (("readers", readers), ("waiting", waiting)):
            if value < 1:
                raise InputError(f"{name} is {value}, expected 1 or more")
        self._runtime = runtime
        self._width = width
        self._most_waiting = waiting
        self._most_documents = readers
        self._decoder = Decoder(runtime.engine, width)
        self._session = runtime.session.through(self._decoder.jobs)
        self._changed = threading.Condition()  # guards what follows
        self._queue: deque[_Waiting] = deque()
        self._open: set[Ticket] = set()
        self._taken_at: deque[float] = deque(maxlen=16)  # when requests left the queue lately
        self._reading = 0
        self._documents = 0
        self._closed = False
        self._readers = [
            threading.Thread(target=self._read_requests, name=f"reader-{number}", daemon=True)
            for number in range(readers)
        ]
        for reader in self._readers:
            reader.start()
        atexit.register(self.close, 0.0)  # PyTorch ends badly while a thread computes
        renew_in_child(self)

    def submit(self, request: Request, on_event: OnEvent) -> Ticket:
        """Take a request in. Everything else is told to `on_event`, from other threads: `Started`,
        `Piece` for each token, and at last `Ended` or `Failed`, which may also come alone.
        `on_event` must return quickly.

        Raises:
            BusyError: the queue is full.
            ClosedError: after `close`, or when computing has come to an end.
        """
        ticket = Ticket(request, on_event, self._on_cancel, self._on_end)
        with self._changed:
            self._require_open()
            if len(self._queue) >= self._most_waiting:
                raise BusyError(f"{len(self._queue)} requests wait already", self._retry_after_s())
            self._open.add(ticket)
            self._queue.append(_Waiting(ticket, time.monotonic()))
            self._changed.notify_all()
        return ticket

    def read(
        self,
        segments: Sequence[Tokens],
        namespace: Namespace | None = None,
        progress: Progress | None = None,
    ) -> Prefill:
        """Read a document so that later requests find it, in turns with the streams; in the
        caller's thread. A `progress` that raises ends it between two chunks.

        Raises:
            BusyError: as many documents are being read as may.
            ClosedError: as `submit`.
            PromptError, TokenError: as `Runtime.warm`.
        """
        with self._changed:
            self._require_open()
            if self._documents >= self._most_documents:
                raise BusyError(
                    f"{self._documents} documents are being read already", _LEAST_RETRY_S
                )
            self._documents += 1
        try:
            session = self._session.within(namespace)
            prefill, later = session.read(segments, progress, named_segments=len(segments))
            session.submit(later)
            return prefill
        finally:
            with self._changed:
                self._documents -= 1
                self._changed.notify_all()

    def load(self) -> Load:
        """What there is to do at this moment."""
        decoder = self._decoder
        with self._changed:
            return Load(
                width=self._width,
                active=decoder.active,
                reading=self._reading,
                waiting=len(self._queue),
                documents=self._documents,
                steps=decoder.steps,
                ready=decoder.ready and not self._closed,
            )

    def close(self, timeout_s: float = 30.0, *, flush_s: float = 10.0) -> bool:
        """Take nothing more in, answer what was taken in, and write what waits to be stored; a
        second call does nothing.

        Args:
            timeout_s: for the answers; those that are not complete by then fail with `ClosedError`.
            flush_s: for the writing.

        Returns:
            Whether everything was done in time.
        """
        with self._changed:
            if self._closed:
                return True
            self._closed = True
            atexit.unregister(self.close)
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not (self._open or self._documents), timeout_s)
            left = list(self._open)
        for ticket in left:
            ticket.end(Failed(ClosedError("the server closed before the answer was complete")))
            ticket.cancel()
        if not done:  # documents have nobody else to end them
            self._decoder.jobs.close()
        done = self._decoder.close(flush_s) and done
        for reader in self._readers:
            reader.join(0 if left else flush_s)
        return self._flush(flush_s) and done

    def renew(self) -> None:
        """Be closed, as in a forked child: threads and tickets are its parent's."""
        atexit.unregister(self.close)
        self._changed = threading.Condition()  # the old one may be shut for ever
        self._queue.clear()
        self._open.clear()
        self._closed = True
        self._decoder.forget()

    def _flush(self, flush_s: float) -> bool:
        deadline = time.monotonic() + flush_s
        written = self._runtime.flush(flush_s)
        store = self._runtime.store
        if store is not None:
            written = store.flush(max(deadline - time.monotonic(), 0.0)) and written
        return written

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("no requests are taken any more: the server has closed")
        if self._decoder.ended:
            raise ClosedError("no requests can be computed any more: restart the server")

    def _retry_after_s(self) -> float:
        """About when the queue moves on."""
        if len(self._taken_at) < 2:
            return _LEAST_RETRY_S
        lately_s = (time.monotonic() - self._taken_at[0]) / len(self._taken_at)
        return min(max(lately_s, _LEAST_RETRY_S), _MOST_RETRY_S)

    # What tickets say.

    def _on_cancel(self, ticket: Ticket) -> None:
        with self._changed:
            mine = next((waiting for waiting in self._queue if waiting.ticket is ticket), None)
            if mine is not None:
                self._queue.remove(mine)
        if mine is not None:
            ticket.end(Ended("cancelled", 0))
        self._decoder.wake()

    def _on_end(self, ticket: Ticket) -> None:
        with self._changed:
            self._open.discard(ticket)
            self._changed.notify_all()

    # The readers.

    def _read_requests(self) -> None:
        while (waiting := self._next()) is not None:
            try:
                self._serve(waiting)
            except CancelledError:
                waiting.ticket.end(Ended("cancelled", waiting.ticket.pieces))
            except BaseException as error:  # noqa: BLE001 - this request's alone; the thread stays
                waiting.ticket.end(Failed(_passed_on(error)))
            finally:
                del waiting
                with self._changed:
                    self._reading -= 1

    def _next(self) -> _Waiting | None:
        """The next request; ``None``: closed, and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            self._reading += 1
            self._taken_at.append(time.monotonic())
            return self._queue.popleft()

    def _serve(self, waiting: _Waiting) -> None:
        """Read a prompt, choose the first token, and have the text carried on."""
        ticket, request = waiting.ticket, waiting.ticket.request
        queued_s = time.monotonic() - waiting.since
        text = self._runtime.continuation(
            max_tokens=request.max_tokens, sampling=request.sampling, stop=request.stop
        )
        ticket.check()
        session = self._session.within(request.namespace)
        prefill, later = session.read(
            request.segments,
            ticket.check,
            named_segments=request.named_segments,
            grows=request.grows,
        )
        try:
            ticket.tell(_started(prefill, queued_s))
            if text.ended is None:
                new = text.take(text.choose(prefill.logits))
                if new is not None:
                    ticket.tell(Piece(new.token, new.text))
        finally:
            session.submit(later, wait=False)  # somebody waits for the second token
            del later
        state = prefill.state
        del prefill
        if text.ended is None:
            self._decoder.enter(ticket, text, state)
        else:
            ticket.end(Ended(text.ended, text.count))


def _passed_on(error: BaseException) -> Exception:
    """The error as the request gets it: one that would end a thread ends this request alone."""
    if isinstance(error, Exception):
        return error
    log.error("a request failed with what is no common error", exc_info=error)
    return RuntimeError(f"the request failed: {type(error).__name__}: {error}")


def _started(prefill: Prefill, queued_s: float) -> Started:
    return Started(
        prompt_tokens=prefill.cached_tokens + prefill.computed_tokens,
        cached_tokens=prefill.cached_tokens,
        computed_tokens=prefill.computed_tokens,
        seconds=prefill.seconds,
        queued_s=queued_s,
    )
