"""Events from the threads that compute to the coroutines that answer.

A decode step frees a token for each of many streams. All that came since the loop last looked is
handed over with one wake-up of the loop, and a stream that was not served in time gets its events
together.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import suppress
from typing import TypeVar

from rwkv_runtime.serving.events import Event

T = TypeVar("T")


class Hub:
    """All relays of one event loop. Made in the loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Relay, Event]] = deque()
        self._lock = threading.Lock()
        self._awake = False

    def relay(self) -> Relay:
        """A new one."""
        return Relay(self)

    def push(self, relay: Relay, event: Event) -> None:
        """From any thread; never waits for the loop."""
        with self._lock:
            self._waiting.append((relay, event))
            if self._awake:
                return
            self._awake = True
        with suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            delivered, self._waiting = self._waiting, deque()
            self._awake = False
        for relay, event in delivered:
            relay.receive(event)


class Relay:
    """One stream's events, in order."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._events: list[Event] = []
        self._some = asyncio.Event()

    def push(self, event: Event) -> None:
        """What computing threads call."""
        self._hub.push(self, event)

    def receive(self, event: Event) -> None:
        """In the loop's thread."""
        self._events.append(event)
        self._some.set()

    async def next(self, timeout_s: float | None = None) -> list[Event]:
        """What has come since the last call, at least one event; none: `timeout_s` passed."""
        if not self._events:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._some.wait()
        self._some.clear()
        events, self._events = self._events, []
        return events
