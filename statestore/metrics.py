"""Every instrument of a store, with its unit and labels; nothing else in the package creates one.

Each store has a registry of its own, so two stores in one process do not mix, and a server may add
it to whatever it exposes. Values of one process; reading them costs nothing on the request's path.
Where prometheus_client adds up several processes, a breaker's state is the worst of those alive.

| instrument | labels | counts |
| --- | --- | --- |
| statestore_lookups_total | outcome: hit, miss, error | calls of `find` and `get` |
| statestore_puts_total | outcome: published, present, dropped | calls of `put` |
| statestore_quarantined_total | cause: an error's class name | blobs that were not sound |
| statestore_errors_total | operation | backend failures that were kept from the caller |
| statestore_tokens_found_total | | tokens that hits spared |
| statestore_read_bytes_total, statestore_written_bytes_total | | blob bytes |
| statestore_evictions_total | policy, reason: room, excess, superseded, expired | states gone |
| statestore_evicted_tokens_total, statestore_evicted_bytes_total | policy, reason | theirs |
| statestore_tier_hits_total | tier | lookups that ended with an entry of this tier |
| statestore_write_behind_total | kind: put, promotion, note; outcome | done, failed, dropped |
| statestore_write_behind_bytes | | gauge: blob bytes that wait |
| statestore_fetch_seconds, statestore_put_seconds | | histograms of whole calls |
| statestore_breaker_state | place, calls: all, writes | 0 closed, 1 half-open, 2 open |
| statestore_breaker_openings_total | place, calls | times that a breaker opened |
| statestore_short_circuited_total | operation | calls that an open breaker refused |
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The instruments of one store."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.lookups = self._counter("lookups", "Lookups by outcome", "outcome")
        self.puts = self._counter("puts", "Puts by outcome", "outcome")
        self.quarantined = self._counter("quarantined", "Blobs found unsound, by cause", "cause")
        self.errors = self._counter("errors", "Backend failures kept from the caller", "operation")
        self.tokens_found = self._counter("tokens_found", "Tokens spared by hits")
        self.read_bytes = self._counter("read_bytes", "Blob bytes read")
        self.written_bytes = self._counter("written_bytes", "Blob bytes written")
        went = ("policy", "reason")
        self.evictions = self._counter("evictions", "States that went, by whose choice", *went)
        self.evicted_tokens = self._counter("evicted_tokens", "Tokens that they stood after", *went)
        self.evicted_bytes = self._counter("evicted_bytes", "Bytes of their blobs", *went)
        self.fetch_seconds = self._histogram("fetch", "Seconds of a lookup with its fetch")
        self.put_seconds = self._histogram("put", "Seconds of a put")
        self.breaker_state = Gauge(
            "statestore_breaker_state",
            "Breakers: 0 closed, 1 half-open, 2 open",
            ("place", "calls"),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.breaker_openings = self._counter(
            "breaker_openings", "Times that a breaker opened", "place", "calls"
        )
        self.short_circuited = self._counter(
            "short_circuited", "Calls that an open breaker refused", "operation"
        )
        self.tier_hits = self._counter("tier_hits", "Lookups that a tier answered", "tier")
        self.write_behind = self._counter(
            "write_behind", "Work behind the requests, by outcome", "kind", "outcome"
        )
        self.write_behind_bytes = Gauge(
            "statestore_write_behind_bytes",
            "Blob bytes that wait",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def value(self, name: str, **labels: str) -> float:
        """The present value of ``statestore_<name>``; 0.0 before its first event."""
        return self.registry.get_sample_value(f"statestore_{name}", labels) or 0.0

    def evicted(self, policy: str, reason: str, states: int, tokens: int, size_bytes: int) -> None:
        """States went: for ``room`` that a put needs, as an ``excess`` that others' puts made,
        ``superseded`` by the end of their segment.
        """
        self.evictions.labels(policy=policy, reason=reason).inc(states)
        self.evicted_tokens.labels(policy=policy, reason=reason).inc(tokens)
        self.evicted_bytes.labels(policy=policy, reason=reason).inc(size_bytes)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"statestore_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(
            f"statestore_{name}_seconds", text, registry=self.registry, buckets=_SECONDS
        )
