"""Who holds a lease, and whether that process still lives."""

from __future__ import annotations

import subprocess
import sys

from statestore.owner import has_ended, is_beside, new_owner


def test_an_owner_is_nobody_else_and_lives() -> None:
    assert new_owner() != new_owner()
    assert not has_ended(new_owner())


def test_a_killed_process_has_ended() -> None:
    code = "from statestore.owner import new_owner; print(new_owner(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        owner = process.stdout.readline().strip()
        assert not has_ended(owner)
        process.kill()
        process.wait()
        assert has_ended(owner)
        elsewhere = f"other-{owner}"
        assert not has_ended(elsewhere), "of another machine nothing is known"
        assert is_beside(owner)
        assert not is_beside(elsewhere)


def test_what_is_no_owner_is_never_taken_for_dead() -> None:
    place = new_owner().partition("/")[0]
    for text in ("", "/1/x", "w1", f"{place}/", f"{place}/x/1", f"{place}/{'9' * 40}/1"):
        assert not has_ended(text)
    assert not is_beside("")
    assert not is_beside("/1/x")
