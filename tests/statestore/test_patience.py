"""How long one waits for what another computes."""

from __future__ import annotations

import pytest

from statestore.backends.leases import Lease
from statestore.once import Patience
from statestore.owner import new_owner

BESIDE = new_owner()
ELSEWHERE = f"other-{BESIDE}"
PATIENCE = Patience(compute_s=10.0)


@pytest.mark.parametrize(
    ("owner", "waited_s", "left_s"),
    [
        (ELSEWHERE, 5, 16),
        (ELSEWHERE, 22, -1),
        (BESIDE, 22, 59),  # it is slow because all are, here
        (BESIDE, 82, -1),
        ("nobody", 22, -1),
    ],
    ids=["elsewhere", "elsewhere too long", "beside", "beside too long", "nobody"],
)
def test_one_waits_longer_for_a_neighbour(owner: str, waited_s: float, left_s: float) -> None:
    assert PATIENCE.left_s(waited_s, Lease(owner, 60.0)) == pytest.approx(left_s)


def test_a_lease_that_lapses_soon_is_waited_for() -> None:
    assert PATIENCE.left_s(21.5, Lease(ELSEWHERE, 9.0)) == pytest.approx(9.0, abs=0.1)
    assert PATIENCE.left_s(25, Lease(ELSEWHERE, 5.5)) == pytest.approx(5.5, abs=0.1)


@pytest.mark.parametrize("remaining_s", [0.0, 3.0, 9.0])  # 0.0: of one that never lapses
def test_a_lease_that_is_renewed_again_and_again_is_not(remaining_s: float) -> None:
    assert PATIENCE.left_s(32, Lease(ELSEWHERE, remaining_s)) < 0


def test_who_wants_no_more_ends_the_waiting() -> None:
    def gone() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Patience(1.0, check=gone).left_s(0, Lease(ELSEWHERE, 9.0))
