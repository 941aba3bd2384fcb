"""The access log: whole lines from many processes, bounded, and no secret in it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from statestore.accesslog import Access, AccessLog
from statestore.errors import SettingsError
from tests.checkout import ROOT
from tests.places.backend_places import digest
from tests.places.small_disks import mounted_tmpfs


def an_access(number: int, ends: int = 5) -> Access:
    return Access(
        time_s=1_700_000_000.0 + number,
        namespace="default",
        n_tokens=256 * ends,
        positions=[256 * (end + 1) for end in range(ends)],
        digests=[digest(f"{number} {end}") for end in range(ends)],
        segments=[256],
        stable=True,
        cached_tokens=number,
        seconds=0.5,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_what_the_module_says(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    assert AccessLog(path).append(an_access(3, 2))
    (line,) = lines(path)
    keys = line.pop("keys")
    assert line == {
        "time": 1_700_000_003.0,
        "namespace": "default",
        "tokens": 512,
        "positions": [256, 512],
        "segments": [256],
        "stable": True,
        "cached": 3,
        "seconds": 0.5,
    }
    assert [len(bytes.fromhex(key)) for key in keys] == [16, 16]


def test_keys_are_equal_where_prefixes_are_and_only_within_a_salt(tmp_path: Path) -> None:
    for name in ("one", "other"):
        for _ in range(2):  # as two processes open it
            AccessLog(tmp_path / name).append(an_access(1))
    one, other = lines(tmp_path / "one"), lines(tmp_path / "other")
    assert one[0]["keys"] == one[1]["keys"]
    assert not set(one[0]["keys"]) & set(other[0]["keys"])
    assert digest("1 0").hex()[:32] not in (tmp_path / "one").read_text()


def test_log_and_salt_are_their_owners_alone(tmp_path: Path) -> None:
    AccessLog(tmp_path / "log").append(an_access(1))
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.salt"}


def write(path: Path, first: int, count: int, limit_bytes: int, kept: int) -> None:
    log = AccessLog(path, limit_bytes=limit_bytes, kept=kept)
    for number in range(first, first + count):
        assert log.append(an_access(number, ends=1 + number % 300))


def four_processes(path: Path, limit_bytes: int, kept: int) -> None:
    """Each writes 300 lines."""
    code = f"from {__name__} import *; write(Path({str(path)!r}), %d, 300, {limit_bytes}, {kept})"
    workers = [
        subprocess.Popen([sys.executable, "-c", code % (300 * number)], cwd=ROOT)
        for number in range(4)
    ]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0, 0]


def test_many_processes_append_whole_lines(tmp_path: Path) -> None:
    """Of up to 12 KB, and beginning at once: one salt stands."""
    path = tmp_path / "log"
    four_processes(path, 1 << 40, 1)
    found = lines(path)
    assert sorted(line["cached"] for line in found) == list(range(1200))
    assert all(len(line["keys"]) == 1 + line["cached"] % 300 for line in found)
    again = AccessLog(tmp_path / "log")
    again.append(an_access(17, ends=18))
    (before,) = [line for line in found if line["cached"] == 17]
    assert lines(path)[-1]["keys"] == before["keys"]


def test_it_is_bounded_and_no_line_is_torn_by_that(tmp_path: Path) -> None:
    path, limit = tmp_path / "log", 200_000
    four_processes(path, limit, 2)
    logs = sorted(p for p in tmp_path.iterdir() if p.suffix != ".salt")
    assert [p.name for p in logs] == ["log", "log.1", "log.2"]
    numbers = [line["cached"] for log in logs for line in lines(log)]
    assert len(numbers) == len(set(numbers))
    for log in logs[1:]:
        assert limit <= log.stat().st_size < limit + 4 * 13_000  # what was on its way goes in


def test_none_kept_aside(tmp_path: Path) -> None:
    write(tmp_path / "log", 0, 100, 5_000, 0)
    assert {path.name for path in tmp_path.iterdir()} <= {"log", "log.salt"}


def test_what_an_operator_takes_away_begins_anew(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "log")
    log.append(an_access(1))
    (tmp_path / "log").rename(tmp_path / "taken")
    log.append(an_access(2))
    assert [line["cached"] for line in lines(tmp_path / "log")] == [2]


def test_no_place_for_it_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name a file in a directory that exists"):
        AccessLog(tmp_path / "missing" / "log")
    (tmp_path / "log.salt").write_bytes(b"short")
    with pytest.raises(SettingsError, match=r"log\.salt is no access log's salt: 16 bytes"):
        AccessLog(tmp_path / "log")


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "disk"
    with mounted_tmpfs(root, "256k"):
        (root / "ballast").write_bytes(bytes(64 << 10))
        log = AccessLog(root / "log", limit_bytes=1 << 40)
        written = [log.append(an_access(number, ends=100)) for number in range(80)]
        assert written[0]
        assert not written[-1]
        (root / "ballast").unlink()
        assert log.append(an_access(100))
        whole = [line for line in (root / "log").read_text().splitlines() if line.endswith("}")]
        assert [json.loads(line)["cached"] for line in whole] == [*range(sum(written)), 100]
    assert "lost a line" in caplog.text
