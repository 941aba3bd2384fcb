"""The table and the plots of `benchmarks.speed`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks.stats import Timing

COLOURS = {"": "#2b6cb0", " native": "#2c7a7b", " package": "#a0aec0", " limit": "#c05621"}
LABELS = {
    "": "this engine",
    " native": "with its kernel",
    " package": "rwkv package",
    " limit": "limit",
}


class Measured(Protocol):
    """One thing's time for so many tokens."""

    @property
    def shape(self) -> str: ...  # noqa: D102 - as the class says
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def timing(self) -> Timing: ...  # noqa: D102
    @property
    def tokens_per_s(self) -> float: ...  # noqa: D102


def report(rows: Sequence[Measured], how: str) -> None:
    """Print one table for each shape and dtype."""
    for (shape, dtype), group in groupby(rows, lambda row: (row.shape, row.dtype)):
        found = {row.name: row for row in group}
        columns = ("", "tokens/s", "median ms", "p90", "p99", "to package", "of the limit")
        table = Table(*columns, title=f"{shape}, {dtype}, {how}")
        for name, row in found.items():
            times = row.timing.milliseconds()
            table.add_row(name, f"{row.tokens_per_s:.1f}", *times, *_ratios(name, found))
        Console(width=100).print(table)


def _ratios(name: str, found: dict[str, Measured]) -> tuple[str, str]:
    """A prefill's and a decoding's to package and limit; a batch's to decoding alone."""
    rate = found[name].tokens_per_s
    if name.startswith("batch"):
        alone = "decode native" if name.endswith(" native") else "decode"
        return f"{rate / found[alone].tokens_per_s:.1f} x alone", ""
    what, _, kind = name.partition(" ")
    if kind in ("package", "limit"):
        return "", ""
    package, limit = found[f"{what} package"], found[f"{what} limit"]
    return f"{rate / package.tokens_per_s:.2f} x", f"{rate / limit.tokens_per_s:.0%}"


def plot(rows: Sequence[Measured], folder: Path) -> None:
    """Write speed.svg (prefill and decode beside package and limit) and speed-batches.svg."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "speed", "font.size": 9}
    kinds = list(dict.fromkeys((row.shape, row.dtype) for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.0), layout="constrained")
    for axis, what in zip(axes, ("prefill", "decode"), strict=True):
        measured = {row.name for row in rows}
        suffixes = [suffix for suffix in COLOURS if what + suffix in measured]
        width = 0.8 / len(suffixes)
        for place, suffix in enumerate(suffixes):
            values = [_rate(rows, *kind, what + suffix) for kind in kinds]
            left = width * (place - (len(suffixes) - 1) / 2)
            places = [number + left for number in range(len(kinds))]
            bars = axis.bar(
                places, values, 0.93 * width, color=COLOURS[suffix], label=LABELS[suffix]
            )
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        axis.set_title(f"{what}, tokens/s")
        axis.set_xticks(range(len(kinds)), [f"{shape} {dtype}" for shape, dtype in kinds])
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    figure.savefig(folder / "speed.svg", metadata={"Date": None})
    if any(row.name.startswith("batch") for row in rows):
        _plot_batches(rows, kinds, folder / "speed-batches.svg")


def _plot_batches(rows: Sequence[Measured], kinds: Sequence[tuple[str, str]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6.0, 3.0), layout="constrained")
    axis.set_xscale("log", base=2)
    for suffix, style in (("", "--"), (" native", "-")):
        for place, (shape, dtype) in enumerate(kinds):
            batches = re.compile(rf"batch (\d+){suffix}")
            of_kind = [row for row in rows if (row.shape, row.dtype) == (shape, dtype)]
            found = [(match, row) for row in of_kind if (match := batches.fullmatch(row.name))]
            if not found:
                continue
            widths = {int(match[1]): row.tokens_per_s for match, row in found}
            rates = {1: _rate(rows, shape, dtype, f"decode{suffix}")} | widths
            axis.plot(
                [*rates],
                [*rates.values()],
                style,
                color=f"C{place}",
                marker="o",
                label=f"{shape} {dtype}, {LABELS[suffix]}",
            )
            axis.set_xticks([*rates], [str(width) for width in rates])
    axis.set_ylim(bottom=0)
    axis.set_xlabel("streams")
    axis.set_title("decode in batches, tokens/s")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _rate(rows: Sequence[Measured], shape: str, dtype: str, name: str) -> float:
    return next(
        row.tokens_per_s for row in rows if (row.shape, row.dtype, row.name) == (shape, dtype, name)
    )
