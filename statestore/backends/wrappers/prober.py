"""Asks a place that is left alone whether it has come back, so that no request has to.

The thread lives while the breaker is open. It repeats the call that failed, where that call can be
repeated: a place that answers a ping but no lookups is not back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from statestore.backends.wrappers.breaker import Breaker, Circuit
from statestore.errors import BusyError, StateStoreError, UnavailableError

log = logging.getLogger(__name__)

Question = Callable[[], object]


class Prober:
    """Lets probes through `breaker`. Not across a fork: make anew.

    Args:
        breaker: nobody else probes it.
        place: names it in the log.
        in_vain: called when a probe has failed.
    """

    def __init__(self, breaker: Breaker, place: str, in_vain: Callable[[], object]) -> None:
        self._breaker = breaker
        self._place = place
        self._in_vain = in_vain
        self._ended = threading.Event()
        self._lock = threading.Lock()  # guards what follows
        self._question: Question | None = None
        self._running = False

    def watch(self, question: Question | None = None) -> None:
        """See to it that somebody asks, from now on `question`; it has a deadline of its own."""
        with self._lock:
            self._question = question or self._question
            if self._running or self._question is None or self._ended.is_set():
                return
            thread = threading.Thread(target=self._run, name="store-probe", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads; the next call that is refused comes here, too
                return
            self._running = True

    def end(self) -> None:
        """Ask no more. Does not wait."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._breaker.remaining_s):
            ticket = self._breaker.probe()
            if ticket is not None:
                self._ask(ticket)
            with self._lock:
                if self._breaker.circuit is Circuit.CLOSED:
                    self._running = False
                    return

    def _ask(self, ticket: int) -> None:
        with self._lock:
            question = self._question
        assert question is not None
        try:
            question()
        except BusyError:
            pass  # it answers
        except UnavailableError as error:
            self._breaker.failed(ticket)
            self._in_vain()
            log.info("%s; it is left alone for %.1f s", error, self._breaker.remaining_s)
            return
        except StateStoreError:
            pass  # an answer: a damaged blob, say
        except Exception:
            self._breaker.failed(ticket)
            log.exception("%s: a probe failed", self._place)
            return
        if self._breaker.succeeded(ticket) and not self._ended.is_set():
            log.warning("%s answers again", self._place)
