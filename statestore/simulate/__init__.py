"""What would a budget and a policy save? Replays recorded requests through the very policies that
production uses, before anybody buys disks.

>>> from statestore.eviction import make_policy
>>> requests = read_trace(path)                                   # doctest: +SKIP
>>> result = replay(requests, make_policy(), make_admission(PRODUCTION), 1000)  # doctest: +SKIP
>>> result.hit_token_share, result.total.states_written, result.states_kept     # doctest: +SKIP
"""

from __future__ import annotations

from statestore.simulate.admission import (
    ADMISSIONS,
    GAIN_TOKENS,
    PRODUCTION,
    Admission,
    make_admission,
)
from statestore.simulate.oracle import replay_clairvoyant
from statestore.simulate.plot import plot
from statestore.simulate.real import replay_through
from statestore.simulate.repeated import Repeated
from statestore.simulate.replay import Result, replay
from statestore.simulate.trace import Request, read_trace
from statestore.simulate.workers import make_workers

__all__ = [
    "ADMISSIONS",
    "GAIN_TOKENS",
    "PRODUCTION",
    "Admission",
    "Repeated",
    "Request",
    "Result",
    "make_admission",
    "make_workers",
    "plot",
    "read_trace",
    "replay",
    "replay_clairvoyant",
    "replay_through",
]
