"""`statestore bench`: what this store does on this machine, in plain words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import click

from statestore.cli.options import Seconds, as_json_option
from statestore.cli.plain import Plain, plain_place
from statestore.cli.premises import Premises
from statestore.cli.render import counted, emit_json, emit_table, milliseconds
from statestore.cli.trial import STATES, Times, Trial, random_state
from statestore.settings import tiers_of

_LOOKUPS: Final = (1024, 32_768)  # tokens

_SPEED: Final = 2000  # tokens/s, of a 0.1B model on two cores; to compare with

#: Tells what is measured now; the end of each step.
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StateTimes:
    """One size of states in one place."""

    name: str
    state_bytes: int
    put: Times
    find: Times
    plain_write: Times | None
    plain_read: Times | None


@dataclass(frozen=True, slots=True)
class PlaceTimes:
    """One place."""

    place: Premises
    verbs: tuple[str, str] | None  # what its plain write and read are called
    states: Sequence[StateTimes]
    lookups: dict[int, Times]  # by tokens


@click.command()
@click.option(
    "--state",
    "names",
    type=click.Choice(tuple(STATES)),
    multiple=True,
    default=["0.1B", "7.2B"],
    show_default=True,
    help="Whose states, by the model's size; may be repeated.",
)
@click.option(
    "--seconds",
    type=Seconds(),
    default=1.0,
    show_default=True,
    help="How long each thing is measured, about.",
)
@as_json_option
@click.pass_obj
def bench(url: str, names: Sequence[str], seconds: float, as_json: bool) -> None:
    """Measure this store on this machine; nothing is left behind.

    States of random numbers are put, found and removed again in every tier by itself, beside a
    plain write and read of as many bytes on the same disk or server. No stored state is dropped to
    make room.

    \b
    Example:
      statestore --store ./states bench --state 0.1B
    """
    places = [Premises.of(name, text) for name, text in tiers_of(url).items()]
    steps = len(places) * (2 * len(names) + len(_LOOKUPS))
    with _progress(steps, quiet=as_json) as step:
        measured = [_measure(place, names, seconds, step) for place in places]
    if as_json:
        emit_json({"places": [_record(times) for times in measured]})
        return
    for number, times in enumerate(measured):
        if number:
            click.echo()
        _show(times)


def _measure(place: Premises, names: Sequence[str], seconds: float, step: Step) -> PlaceTimes:
    with ExitStack() as opened:
        trial = opened.enter_context(Trial(place))
        plain = plain_place(place)
        if plain is not None:
            opened.callback(plain.close)
        states = [_measure_states(trial, plain, name, seconds, step) for name in names]
        lookups = {}
        for n_tokens in _LOOKUPS:
            step(f"{place.name}: looking up {n_tokens} tokens")
            lookups[n_tokens] = Times.of(trial.lookup(n_tokens), seconds / 2, least=10)
    return PlaceTimes(place, None if plain is None else plain.verbs, states, lookups)


def _measure_states(
    trial: Trial, plain: Plain | None, name: str, seconds: float, step: Step
) -> StateTimes:
    state = random_state(STATES[name])
    step(f"{name}: putting and finding")
    finds: list[float] = []

    def put() -> float:
        key, taken = trial.put(state)
        finds.append(trial.find(key, state))
        trial.remove(key)
        return taken

    puts = Times.of(put, seconds)
    step(f"{name}: writing and reading plainly")
    if plain is None:
        return StateTimes(name, state.nbytes, puts, Times(finds), None, None)
    content = b"".join(tensor.data for tensor in state.tensors)
    writes = Times.of(partial(plain.write, content), seconds / 2)
    reads = Times.of(plain.read, seconds / 2)
    return StateTimes(name, state.nbytes, puts, Times(finds), writes, reads)


def _record(times: PlaceTimes) -> dict[str, object]:
    return {
        "tier": times.place.name,
        "url": str(times.place.url),
        "states": [
            {
                "model": state.name,
                "state_bytes": state.state_bytes,
                "puts_per_s": 1 / state.put.median_s,
                "put": state.put.record(),
                "find": state.find.record(),
                "plain_write": state.plain_write and state.plain_write.record(),
                "plain_read": state.plain_read and state.plain_read.record(),
            }
            for state in times.states
        ],
        "lookups": [
            {"tokens": tokens, **taken.record()} for tokens, taken in times.lookups.items()
        ],
    }


def _show(times: PlaceTimes) -> None:
    click.secho(f"{times.place.name}  {times.place.url}", bold=True)
    rows = [row for state in times.states for row in _state_rows(state, times.verbs)]
    for tokens, taken in times.lookups.items():
        rows.append([f"look up a prompt of {tokens:,} tokens", *_cells(taken), ""])
    emit_table(["", ">median", ">p90", ">rate"], rows)
    for state in times.states:
        click.echo(_sentence(state))


def _state_rows(state: StateTimes, verbs: tuple[str, str] | None) -> Iterator[list[str]]:
    megabytes = state.state_bytes / 1e6
    size = f"{megabytes:.1f} MB" if megabytes >= 0.1 else f"{1e3 * megabytes:.0f} kB"
    write, read = verbs or ("", "")
    for what, taken in (
        (f"put {size} (a state of a {state.name} model)", state.put),
        (f"  {write}", state.plain_write),
        (f"find and load {size}", state.find),
        (f"  {read}", state.plain_read),
    ):
        if taken is not None:
            yield [what, *_cells(taken), f"{state.state_bytes / taken.median_s / 1e6:,.0f} MB/s"]


def _cells(taken: Times) -> list[str]:
    return [milliseconds(taken.median_s), milliseconds(taken.p90_s)]


def _sentence(state: StateTimes) -> str:
    """What the figures mean."""
    found = state.find.median_s
    return (
        f"A state of a {state.name} model is back in {milliseconds(found)}: as long as computing "
        f"{counted(round(found * _SPEED), 'token')} at {_SPEED:,} a second. "
        f"{1 / state.put.median_s:,.0f} puts a second, one after the other."
    )


@contextmanager
def _progress(steps: int, *, quiet: bool) -> Iterator[Step]:
    """Yield what tells the next step; a bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bare = quiet or not console.is_terminal
    with Progress(console=console, transient=True, disable=bare) as bar:
        task = bar.add_task("opening", total=steps + 1)

        def step(what: str) -> None:
            bar.update(task, description=what, advance=1)

        yield step
