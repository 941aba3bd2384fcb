"""Every instrument of the server. Values of one worker; over all workers `exposition` adds them up.

| instrument | labels | counts |
| --- | --- | --- |
| rwkv_requests_total | endpoint, status | answers; 499 is a client that went away |
| rwkv_prompt_tokens_total | namespace, source: cached, computed | tokens of prompts |
| rwkv_completion_tokens_total | namespace | tokens written |
| rwkv_first_token_seconds | | histogram: from the request to its first token |
| rwkv_queue_seconds | | histogram: of that, before its prompt was read |
| rwkv_request_seconds | endpoint | histogram: whole answers |
| rwkv_streams | state: active, waiting, reading | gauge: of all live workers |
| rwkv_worker_ready | | gauge: live workers that are ready |

and those of `statestore.metrics`. The workers of a server keep their values in files of one
directory, one set for each place of a worker: a worker that is restarted counts on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Instruments:
    """The server's instruments in one worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Answers by endpoint and status", "endpoint", "status"
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Tokens of prompts by where they came from", "namespace", "source"
        )
        self.completion_tokens = self._counter("completion_tokens", "Tokens written", "namespace")
        self.first_token = self._histogram("first_token", "Seconds to the first token")
        self.queue = self._histogram("queue", "Seconds before a prompt was read")
        self.seconds = self._histogram("request", "Seconds of whole answers", "endpoint")
        self.streams = Gauge(
            "rwkv_streams",
            "Streams by what they do",
            ("state",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.ready = Gauge(
            "rwkv_worker_ready",
            "Workers that are ready",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rwkv_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"rwkv_{name}_seconds", text, labels, registry=self.registry, buckets=_SECONDS
        )


def count_in_files(place: int) -> None:
    """Have instruments made from now on keep their values in the directory that the environment
    names, in the files of a worker's `place`.
    """
    values.ValueClass = values.MultiProcessValue(lambda: place)  # type: ignore[no-untyped-call]


def forget_gauges(directory: Path, place: int) -> None:
    """A worker has ended: what it was doing no longer counts."""
    mark_process_dead(place, str(directory))  # type: ignore[no-untyped-call]


def exposition(directory: Path) -> bytes:
    """All workers' values, in Prometheus' text format."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry))


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = clock()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._clock() - self._began
