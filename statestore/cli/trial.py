"""States that are put into a real store only to be found again, and go before the command ends.

They lie in a namespace of their own and expire after ten minutes, so that what a killed command
leaves is swept. The store is opened without its budget: a trial drops nobody's state.
"""

from __future__ import annotations

import logging
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np

from statestore.cli.premises import Premises
from statestore.errors import BackendError
from statestore.keys import ChunkRule, Namespace, Role, StateKey, plan
from statestore.schema import Schema, State, Tensor, rwkv7
from statestore.settings import open_store
from statestore.store import Identity, PutOutcome

_TTL_S: Final = 600.0
_MOST: Final = 200  # repetitions of one measurement

#: The states of RWKV-7 models, by the models' sizes; "tiny" is of none.
STATES: Final = {
    "tiny": rwkv7(layers=2, width=64, heads=1, head_size=64),
    "0.1B": rwkv7(layers=12, width=768, heads=12, head_size=64),
    "7.2B": rwkv7(layers=32, width=4096, heads=64, head_size=64),
}


@dataclass(frozen=True, slots=True)
class Times:
    """How long something took, several times over."""

    seconds: Sequence[float]

    @classmethod
    def of(cls, work: Callable[[], float], budget_s: float, *, least: int = 3) -> Times:
        """Repeat `work`, which says how long it took, until `budget_s` have passed."""
        begun = time.monotonic()
        taken: list[float] = []
        while len(taken) < least or (
            len(taken) < _MOST and time.monotonic() - begun + taken[-1] < budget_s
        ):
            taken.append(work())
        return cls(taken)

    @property
    def median_s(self) -> float:
        """Half of them took less."""
        return statistics.median(self.seconds)

    @property
    def p90_s(self) -> float:
        """Nine in ten took no longer."""
        return sorted(self.seconds)[max(0, -(-9 * len(self.seconds) // 10) - 1)]

    def record(self) -> dict[str, float]:
        """For JSON."""
        return {"median_s": self.median_s, "p90_s": self.p90_s, "count": len(self.seconds)}


class Trial:
    """One place on trial; a context manager, which removes what it put.

    Raises:
        StateStoreError: the place cannot be opened.
    """

    def __init__(self, place: Premises) -> None:
        self._store = open_store(place.unbounded, create=False, flush_on_sigterm=False)
        self._identity = Identity(secrets.token_bytes(32), f"trial-{secrets.token_hex(4)}")
        self._kept: set[StateKey] = set()
        self._said = _Said()
        try:
            self._store.usage()  # says so where the place is down; a put would go on without it
        except BaseException:
            self._store.close()
            raise
        logging.getLogger("statestore").addHandler(self._said)

    def put(self, state: State) -> tuple[StateKey, float]:
        """Store `state` under a new key; the key, and the seconds that took.

        Raises `BackendError` where the place does not take it.
        """
        key = StateKey(secrets.token_bytes(32), 1024)
        self._kept.add(key)
        begun = time.perf_counter()
        outcome = self._store.put(
            self._identity,
            key,
            state,
            token_digest=key.digest,
            role=Role.SEGMENT,
            model="trial",
            ttl_s=_TTL_S,
            durable=True,
        )
        taken = time.perf_counter() - begun
        if outcome is not PutOutcome.PUBLISHED:
            raise BackendError(self._said.last or "a state that was put is not there")
        return key, taken

    def find(self, key: StateKey, state: State) -> float:
        """Find `state` again; the seconds that took. Raises `BackendError` where it is not it."""
        begun = time.perf_counter()
        found = self._store.find(self._identity, [key], touch=False, tally=False)
        taken = time.perf_counter() - begun
        if found is None:
            raise BackendError(self._said.last or "a state that was put was not found")
        if found.state != state:
            raise BackendError("a state came back with other bytes than were put")
        return taken

    def lookup(self, n_tokens: int) -> Callable[[], float]:
        """A lookup of a prompt of so many tokens, none of which is stored: the slowest answer."""
        space = Namespace(self._identity.namespace)
        prompt = plan([range(n_tokens)], self._identity.fingerprint, ChunkRule(), space)
        keys = prompt.keys_deepest_first

        def look() -> float:
            begun = time.perf_counter()
            self._store.backend.longest(keys, time.time())
            return time.perf_counter() - begun

        return look

    def remove(self, key: StateKey) -> None:
        """Remove one state."""
        self._store.delete(key)
        self._kept.discard(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logging.getLogger("statestore").removeHandler(self._said)
        try:
            for key in self._kept:
                self._store.delete(key)
        except BackendError:
            if error is None:
                raise
        finally:
            self._store.close()


def random_state(schema: Schema, seed: int = 0) -> State:
    """A state with the numbers of a read one, as far as its size on disk goes."""
    source = np.random.default_rng(seed)
    return State(
        schema.id,
        tuple(
            Tensor.of(s.name, s.dtype, s.shape, source.standard_normal(s.shape, dtype=np.float32))
            for s in schema.tensors
        ),
    )


class _Said(logging.Handler):
    """The store's last complaint: a put and a lookup raise nothing."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()
