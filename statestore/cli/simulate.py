"""`statestore simulate`: what budgets and policies would save, on recorded requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Final

import click

from statestore.cli.options import as_json_option
from statestore.cli.render import emit_json, emit_table, size
from statestore.errors import InputError
from statestore.eviction import DEFAULT, POLICIES, make_policy
from statestore.simulate import (
    ADMISSIONS,
    Request,
    Result,
    make_admission,
    read_trace,
    replay,
    replay_clairvoyant,
)
from statestore.simulate.oracle import NAME as ORACLE
from statestore.simulate.real import replay_through
from statestore.url import size_bytes

_STATE_BYTES: Final = 2_400_000  # of a 0.1B model


@click.command()
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
    default=[ADMISSIONS[0]],
    show_default=True,
    help="What to store; may be repeated.",
)
@click.option("--block-size", default=512, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--speed",
    default=2000.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Tokens read per second, for the seconds saved.",
)
@click.option("--real", metavar="URL", help="Replay through the store at URL, such as memory:")
@as_json_option
def simulate(
    trace: Path,
    counts: Sequence[int],
    sizes: Sequence[str],
    state_size: str,
    policies: Sequence[str],
    admissions: Sequence[str],
    block_size: int,
    speed: float,
    real: str | None,
    as_json: bool,
) -> None:
    """Replay recorded requests and show what would have been found, stored and dropped.

    TRACE holds one JSON object a line: Mooncake's format, or an access log.

    \b
    Example:
      statestore simulate trace.jsonl --budget-states 200 --budget-states 1000 --policy lru \\
          --policy learned
    """
    per_state = size_bytes(state_size, "--state-size")
    if per_state < 1:
        raise InputError("--state-size: at least one byte")
    fit = [size_bytes(text, "--budget") // per_state for text in sizes]
    if any(states == 0 for states in fit):
        raise InputError(f"--budget: less than one state of {size(per_state)}")
    budgets = [*(states or None for states in counts), *fit] or [None]
    requests = read_trace(trace, block_size)
    runs = list(product(budgets, policies, admissions))
    results = list(_results(requests, runs, real, quiet=as_json))
    if as_json:
        emit_json({"results": [_record(result, per_state, speed) for result in results]})
    else:
        _show(results, per_state, speed)


def _results(
    requests: list[Request],
    runs: list[tuple[int | None, str, str]],
    real: str | None,
    *,
    quiet: bool,
) -> Iterator[Result]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True, quiet=quiet)
    for budget, policy, rule in track(runs, "replaying", console=console, transient=True):
        admission = make_admission(rule)
        if policy == ORACLE:
            yield replay_clairvoyant(requests, admission, budget)
        elif real is not None:
            yield replay_through(real, requests, policy, admission, budget)
        else:
            yield replay(requests, make_policy(policy), admission, budget)


def _record(result: Result, per_state: int, speed: float) -> dict[str, object]:
    total = result.total
    return {
        "policy": result.policy,
        "admission": result.admission,
        "budget_states": result.budget_states,
        "hit_token_share": result.hit_token_share,
        "states_written": total.states_written,
        "states_kept": result.states_kept,
        "evictions": total.evictions,
        "requests": total.requests,
        "input_tokens": total.input_tokens,
        "hit_tokens": total.hit_tokens,
        "seconds_saved": total.hit_tokens / speed,
        "bytes_written": total.states_written * per_state,
        "hours": [asdict(tally) for tally in result.hours],
    }


def _show(results: Sequence[Result], per_state: int, speed: float) -> None:
    columns = ["policy", "admission", ">budget", ">hour", ">requests", ">found", ">hours saved"]
    columns += [">written", ">bytes written", ">evicted", ">kept"]
    rows: list[list[str]] = []
    for result in results:
        budget = "unlimited" if result.budget_states is None else str(result.budget_states)
        hours = list(enumerate(result.hours, 1)) if len(result.hours) > 1 else []
        for name, tally in [("all", result.total), *hours]:
            share = tally.hit_tokens / max(tally.input_tokens, 1)
            rows.append(
                [
                    result.policy if name == "all" else "",
                    result.admission if name == "all" else "",
                    budget if name == "all" else "",
                    str(name),
                    str(tally.requests),
                    f"{100 * share:.2f} %",
                    f"{tally.hit_tokens / speed / 3600:.2f}",
                    str(tally.states_written),
                    size(tally.states_written * per_state),
                    str(tally.evictions),
                    str(result.states_kept) if name == "all" else "",
                ]
            )
    emit_table(columns, rows)
