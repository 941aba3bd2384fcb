"""Helpers of the codec that cannot be had: the caller does the work, and nothing is kept."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from statestore.codec import parallel
from statestore.codec.parallel import for_each

HANG_S = 60.0


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> parallel._Helpers:
    """None of them has started."""
    fresh = parallel._Helpers()
    monkeypatch.setattr(parallel, "_HELPERS", fresh)
    return fresh


def test_who_interrupts_the_start_of_helpers_goes_on_alone(helpers: parallel._Helpers) -> None:
    """A signal handler may come while the thread that it stops is starting them."""
    results: list[list[int]] = []

    def work() -> None:
        results.append(for_each(5, 4, lambda: lambda i: i * i))

    with helpers._starting:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(HANG_S)
        assert results == [[0, 1, 4, 9, 16]]


def test_what_no_helper_took_is_not_kept(helpers: parallel._Helpers) -> None:
    class Large:
        pass

    with helpers._starting:
        results = for_each(3, 4, lambda: lambda _: Large())
    known = [weakref.ref(result) for result in results]
    del results
    gc.collect()
    assert [ref() for ref in known] == [None] * 3


def test_helpers_join_and_an_error_is_the_callers(helpers: parallel._Helpers) -> None:
    met = threading.Barrier(3)

    def wait(i: int) -> int:
        met.wait(HANG_S)  # three at once: the caller and two helpers
        if i == 2:
            raise ValueError("of the third")
        return i

    with pytest.raises(ValueError, match="of the third"):
        for_each(3, 3, lambda: wait)
    assert helpers._running == 2
