"""`statestore simulate`: what budgets and policies would save, on recorded requests."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Final

import click

from statestore.cli.progress import progress
from statestore.cli.render import emit_json, emit_table, size
from statestore.errors import InputError
from statestore.eviction import DEFAULT, POLICIES
from statestore.simulate import (
    ADMISSIONS,
    GAIN_TOKENS,
    PRODUCTION,
    Repeated,
    Request,
    Result,
    make_admission,
    make_workers,
    plot,
    read_trace,
    replay,
    replay_clairvoyant,
    replay_through,
)
from statestore.simulate.oracle import NAME as ORACLE
from statestore.simulate.replay import Tally
from statestore.url import size_bytes

_STATE_BYTES: Final = 2_400_000  # of a 0.1B model


@dataclass(frozen=True, slots=True)
class _Scale:
    """What a state and a token are worth here."""

    state_bytes: int
    tokens_per_s: float

    def seconds(self, tokens: int) -> float:
        """That reading so many tokens takes."""
        return tokens / self.tokens_per_s


@click.command()
@click.argument(
    "trace", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "--budget-states",
    "counts",
    type=click.IntRange(min=0),
    multiple=True,
    help="States that fit; may be repeated. 0: all.",
)
@click.option("--budget", "sizes", multiple=True, help="Bytes that fit, such as 50GiB.")
@click.option("--state-size", default=str(_STATE_BYTES), show_default=True, help="Of one state.")
@click.option(
    "--policy",
    "policies",
    type=click.Choice([*POLICIES, ORACLE]),
    multiple=True,
    default=[DEFAULT],
    show_default=True,
    help="What to drop; may be repeated. The oracle knows the future: a yardstick.",
)
@click.option(
    "--admission",
    "admissions",
    type=click.Choice(ADMISSIONS),
    multiple=True,
    default=[PRODUCTION],
    show_default=True,
    help="What to store; may be repeated.",
)
@click.option(
    "--block-size",
    default=512,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens of a block in the trace; an access log has none.",
)
@click.option(
    "--repeat",
    "times",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Replay the trace so many times over, each time by other users.",
)
@click.option(
    "--speed",
    default=2000.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Tokens read per second, for the seconds saved.",
)
@click.option(
    "--fetch",
    "fetch_s",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds that loading a state takes; one that spares less is not stored.",
)
@click.option(
    "--real",
    metavar="[URL]",
    is_flag=False,
    flag_value="memory:",
    help="Replay through the real store at URL, best an empty one. Without a URL: memory:",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(min=1, max=64),
    help="Processes that share the store; each learns from the requests that it is dealt.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.option(
    "--plot",
    "picture",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Draw tokens found over budgets, to an SVG file.",
)
@click.option(
    "--per-hour/--in-all", default=True, show_default=True, help="Hours as rows of the table."
)
def simulate(
    trace: Path,
    counts: Sequence[int],
    sizes: Sequence[str],
    state_size: str,
    policies: Sequence[str],
    admissions: Sequence[str],
    block_size: int,
    times: int,
    speed: float,
    fetch_s: float,
    real: str | None,
    workers: int,
    as_json: bool,
    picture: Path | None,
    per_hour: bool,
) -> None:
    """Replay recorded requests and show what would have been found, stored and dropped.

    TRACE holds one JSON object a line: Mooncake's format, or an access log of this project. -
    stands for standard input. What gzip or zstd packed is unpacked as it is read.

    \b
    Example:
      statestore simulate trace.jsonl --budget-states 200 --budget-states 1000 --policy lru \\
          --policy learned
    """
    per_state = size_bytes(state_size, "--state-size")
    if per_state < 1:
        raise InputError("--state-size: at least one byte")
    if not (math.isfinite(speed) and math.isfinite(fetch_s)):
        raise InputError("--speed and --fetch: finite numbers are wanted")
    budgets = _budgets(counts, sizes, per_state)
    if real is not None and ORACLE in policies:
        raise InputError("--policy oracle: no real store knows the future; leave out --real")
    if picture is not None:
        _draw(picture)  # what cannot be written is said before, not after minutes
    requests = Repeated(_read(trace, block_size), times)
    runs = list(dict.fromkeys(product(budgets, policies, admissions)))
    gain_tokens = max(GAIN_TOKENS, fetch_s * speed)
    results = list(_results(requests, runs, real, gain_tokens, workers))
    scale = _Scale(per_state, speed)
    if picture is not None:
        _draw(picture, results)
    if as_json:
        emit_json({"results": [_record(result, scale) for result in results]})
    else:
        _show(results, scale, per_hour=per_hour)


def _budgets(counts: Sequence[int], sizes: Sequence[str], per_state: int) -> list[int | None]:
    """In states; ``None``: no budget."""
    fit = [size_bytes(text, "--budget") // per_state for text in sizes]
    if any(states == 0 for states in fit):
        raise InputError(f"--budget: less than one state of {size(per_state)}")
    return [*(states or None for states in counts), *fit] or [None]


def _read(trace: Path, block_size: int) -> list[Request]:
    path = Path("/dev/stdin") if trace == Path("-") else trace
    known = path.stat().st_size if path.is_file() else None
    with progress(f"reading {trace}", known, quiet=False) as advance:
        return read_trace(path, block_size, advance)


def _results(
    requests: Sequence[Request],
    runs: Sequence[tuple[int | None, str, str]],
    real: str | None,
    gain_tokens: float,
    workers: int,
) -> Iterator[Result]:
    with _bar(len(requests) * len(runs)) as advance:
        for budget, policy, rule in runs:
            admission = make_admission(rule, gain_tokens)
            if policy == ORACLE:
                yield replay_clairvoyant(requests, admission, budget, advance)
            elif real is not None:
                yield replay_through(real, requests, policy, admission, budget, advance, workers)
            else:
                chosen = make_workers(policy, workers)
                yield replay(requests, chosen, admission, budget, progress=advance)


@contextmanager
def _bar(requests: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, where people look at it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=requests)
        yield lambda count: bar.advance(task, count)


def _draw(picture: Path, results: Sequence[Result] = ()) -> None:
    """Without results: make the file, or leave it as it is."""
    try:
        with picture.open("w" if results else "a", encoding="utf-8") as file:
            file.write(plot(results) if results else "")
    except OSError as error:
        raise InputError(f"--plot {picture}: {error.strerror}") from error


def _record(result: Result, scale: _Scale) -> dict[str, object]:
    return {
        "policy": result.policy,
        "admission": result.admission,
        "budget_states": result.budget_states,
        "hit_token_share": result.hit_token_share,
        "states_written": result.total.states_written,
        "states_kept": result.states_kept,
        "evictions": result.total.evictions,
        **_tally(result.total, scale),
        "hours": [
            {"hour": hour, **_tally(tally, scale)} for hour, tally in sorted(result.hours.items())
        ],
    }


def _tally(tally: Tally, scale: _Scale) -> dict[str, object]:
    return {
        **asdict(tally),
        "seconds_saved": scale.seconds(tally.hit_tokens),
        "bytes_written": tally.states_written * scale.state_bytes,
    }


def _show(results: Sequence[Result], scale: _Scale, *, per_hour: bool) -> None:
    columns = ["policy", "admission", ">budget", ">hour", ">requests", ">found", ">hit tokens"]
    columns += [">seconds saved", ">written", ">bytes written", ">evicted", ">kept"]
    rows: list[list[str]] = []
    for result in results:
        budget = "unlimited" if result.budget_states is None else f"{result.budget_states:,}"
        names = [result.policy, result.admission, budget, "all"]
        rows.append([*names, *_cells(result.total, scale), f"{result.states_kept:,}"])
        if per_hour and len(result.hours) > 1:
            for hour, tally in sorted(result.hours.items()):
                rows.append(["", "", "", str(hour + 1), *_cells(tally, scale), ""])
    spare = [">kept", ">evicted", ">bytes written", ">seconds saved", "admission", ">found"]
    emit_table(columns, rows, spare=spare)


def _cells(tally: Tally, scale: _Scale) -> list[str]:
    share = tally.hit_tokens / max(tally.input_tokens, 1)
    return [
        f"{tally.requests:,}",
        f"{100 * share:.2f} %",
        f"{tally.hit_tokens:,}",
        f"{scale.seconds(tally.hit_tokens):,.0f}",
        f"{tally.states_written:,}",
        size(tally.states_written * scale.state_bytes),
        f"{tally.evictions:,}",
    ]
