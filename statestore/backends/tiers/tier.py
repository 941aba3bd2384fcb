"""One of several places, and what happens when it fails a call: the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from statestore.backends.base import Backend
from statestore.complaints import Complaints
from statestore.errors import BackendError, InputError, StateStoreError
from statestore.metrics import Metrics

log = logging.getLogger(__name__)

Failure = TypeVar("Failure", bound=StateStoreError)


@dataclass(frozen=True, slots=True)
class Tier:
    """One place."""

    name: str  # in metrics, logs and `Entry.tier`
    backend: Backend
    lasting_reads: bool = False  # what `read` returns is never written to, by anybody


class Failures:
    """Counts the calls that tiers fail, and logs them now and then."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._complaints = Complaints(log)

    def add(self, tier: Tier, operation: str, error: Failure) -> Failure:
        """The error, for those who raise it once every tier has failed."""
        self._metrics.errors.labels(operation=operation).inc()
        self._complaints.add(
            (operation, tier.name), "%s went on without tier %s: %s", operation, tier.name, error
        )
        return error

    def survives(self, tier: Tier, operation: str, work: Callable[[], object]) -> bool:
        """Do `work`, which others do not wait for; ``False``: the tier failed it, or keeps no such
        entry, as one from before there were limits.
        """
        try:
            work()
        except (BackendError, InputError) as error:
            self.add(tier, operation, error)
            return False
        return True
