"""A trace several times over: what a day of such hours would be, or a month of such days."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import overload

from statestore.errors import InputError
from statestore.keys import StateKey
from statestore.simulate.trace import SPAN_LIMIT_S, Request


class Repeated(Sequence[Request]):
    """`requests`, which come ordered by time, so many `times` at the same pace; each time they are
    other users', with other texts. Each request is made when it is asked for.

    Raises `InputError` for what would take longer than a trace may.
    """

    def __init__(self, requests: Sequence[Request], times: int) -> None:
        self._requests = requests
        self._times = times
        span_s = requests[-1].time_s - requests[0].time_s
        self._period_s = span_s + span_s / max(len(requests) - 1, 1)
        if self._period_s * times > SPAN_LIMIT_S:
            raise InputError(
                f"{times} times a trace of {span_s:g} s take longer than {SPAN_LIMIT_S:g} s: "
                "repeat it less often"
            )

    def __len__(self) -> int:
        return self._times * len(self._requests)

    @overload
    def __getitem__(self, place: int) -> Request: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Request]: ...
    def __getitem__(self, place: int | slice) -> Request | Sequence[Request]:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        time, number = divmod(range(len(self))[place], len(self._requests))
        request = self._requests[number]
        if time == 0:
            return request
        return Request(
            request.time_s + time * self._period_s,
            request.n_tokens,
            tuple(_of_others(key, b"%d" % time) for key in request.keys),
            request.segments,
        )


def _of_others(key: StateKey, who: bytes) -> StateKey:
    return StateKey(hashlib.sha256(key.digest + who).digest(), key.n_tokens)
