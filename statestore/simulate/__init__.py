"""What would a budget and a policy save? Replays recorded requests through the very policies that
production uses, before anybody buys disks.

>>> requests = read_trace(path)                                   # doctest: +SKIP
>>> replay(requests, make_policy(), make_admission(), 1000).hit_token_share    # doctest: +SKIP
"""

from __future__ import annotations

from statestore.simulate.admission import ADMISSIONS, Admission, make_admission
from statestore.simulate.oracle import replay_clairvoyant
from statestore.simulate.replay import Result, replay
from statestore.simulate.trace import Request, read_trace

__all__ = [
    "ADMISSIONS",
    "Admission",
    "Request",
    "Result",
    "make_admission",
    "read_trace",
    "replay",
    "replay_clairvoyant",
]
