"""`benchmarks.speed` runs to its end: every row that `docs/speed.md` speaks of, and plots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import speed
from rwkv_runtime.engines.batch import WIDTHS
from rwkv_runtime.testing import small_architecture

TINY = replace(small_architecture(width=64, heads=1), vocabulary=65536)
RUN = ["--shapes", "tiny", "--dtypes", "fp32", "--tokens", "64", "--runs", "1", "--threads", "1"]
PREFILL = ["prefill", "prefill native", "prefill package", "prefill limit"]
DECODE = ["decode", "decode native", "decode package", "decode limit"]
BATCHES = [f"batch {width}{by}" for width in WIDTHS for by in ("", " native")]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(speed.SHAPES, "tiny", TINY)
    monkeypatch.setattr(speed, "READ_BYTES", 1 << 20)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(speed.main, [*RUN, *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_row_is_measured_and_drawn(tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(run("--json", "--plots", str(tmp_path)))
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [*PREFILL, *DECODE, *BATCHES]
    tokens = [64] * 4 + [1] * 4 + [width for width in WIDTHS for _ in range(2)]
    assert [row["tokens"] for row in rows.values()] == tokens
    for row in rows.values():
        assert 0 < row["timing"]["median_s"] <= row["timing"]["p99_s"]
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["timing"]["median_s"])
    drawn = (tmp_path / "speed.svg").read_text("utf-8")
    assert "with its kernel" in drawn
    assert (tmp_path / "speed-batches.svg").exists()


def test_without_a_compiler_the_table_has_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    table = run("--no-batches")
    names = [line.split("\u2502")[1].strip() for line in table.splitlines() if "\u2502" in line]
    assert names == [name for name in (*PREFILL, *DECODE) if not name.endswith(" native")]
    limits = [line.split("\u2502")[-2].strip() for line in table.splitlines() if "\u2502" in line]
    assert [limit.endswith("%") for limit in limits] == [True, False, False] * 2
