"""A put: a state is encoded and published, whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from statestore import codec
from statestore.backends.base import Backend
from statestore.entry import Entry
from statestore.errors import BackendError, LimitError, UnavailableError
from statestore.metrics import Metrics
from statestore.schema import State

log = logging.getLogger(__name__)


class PutOutcome(StrEnum):
    """What became of a put."""

    PUBLISHED = "published"
    PRESENT = "present"  # the same key was stored already; the first writer wins
    DROPPED = "dropped"  # the backend failed; counted and logged


class Puts:
    """Puts into one backend. Safe to use from several threads.

    Args:
        backend: where entries and blobs live.
        codec_name: how blobs are encoded.
        limits: what a lookup here would read.
        metrics: instruments to count on.
        kept: told of an operation that failed without the caller's being told.
    """

    def __init__(
        self,
        backend: Backend,
        codec_name: codec.CodecName,
        limits: codec.Limits,
        metrics: Metrics,
        kept: Callable[[str, BackendError], None],
    ) -> None:
        self._backend = backend
        self._codec_name = codec_name
        self._limits = limits
        self._metrics = metrics
        self._kept = kept

    def publish(
        self, entry: Entry, header: codec.Header, state: State, *, durable: bool
    ) -> PutOutcome:
        """Encode `state` and publish it as `entry`, whose `blob_bytes` are not known before."""
        try:
            codec.check_limits(header, self._limits)
        except LimitError as error:  # each load would refuse it
            log.warning(
                "dropped a put of %s, which no lookup here would read: %s", entry.key, error
            )
            return PutOutcome.DROPPED
        try:
            blob = codec.encode(header, state, self._codec_name)
            entry = replace(entry, blob_bytes=sum(len(part) for part in blob))
            published = self._backend.publish(entry, blob, durable=durable)
        except BackendError as error:
            self._kept("put", error)
            return PutOutcome.DROPPED
        except MemoryError:
            why = f"{entry.key}: this process has no memory to encode {state.nbytes} bytes"
            self._kept("put", UnavailableError(why))
            return PutOutcome.DROPPED
        if not published:
            return PutOutcome.PRESENT
        self._metrics.written_bytes.inc(entry.blob_bytes)
        return PutOutcome.PUBLISHED
