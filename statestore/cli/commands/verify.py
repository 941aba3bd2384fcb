"""`statestore verify`: reads and checks what is stored, and mends what can be mended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from statestore.cli.options import Seconds, as_json_option
from statestore.cli.progress import progress
from statestore.cli.render import counted, emit_json, size
from statestore.cli.selecting import Selection, selection_options
from statestore.entry import Entry, Status
from statestore.lanes import LANES
from statestore.reconcile import LeftOver, check_all, left_overs, mendable, take_down
from statestore.settings import open_store
from statestore.store import StateStore
from statestore.url import places


@click.command()
@selection_options
@click.option("--fix", is_flag=True, help="Mend what is found; see above.")
@click.option(
    "--grace",
    type=Seconds(),
    default=3600.0,
    show_default=True,
    metavar="SECONDS",
    help="Leave younger blobs alone that no entry names: their writers may be at work.",
)
@click.option(
    "--threads", type=click.IntRange(1, 64), default=LANES, show_default=True, help="Reading."
)
@as_json_option
@click.pass_obj
@click.pass_context
def verify(
    ctx: click.Context,
    url: str,
    selection: Selection,
    fix: bool,
    grace: float,
    threads: int,
    as_json: bool,
) -> None:
    """Read and check every blob that may be used.

    Exits with 3 if anything is unsound. With --fix a damaged state is quarantined, and one
    whose blob has gone is removed: the next put replaces it. Sound blobs that no entry names
    are catalogued again, unless they were removed on purpose: so a lost catalog comes back, but
    for hits, labels, pins and expiry. Totals are summed anew, and a file store's lookup filter
    that lacks states is made anew; on Redis, what a gc does. When states are selected, only they
    are checked and mended. Every tier is looked at but memory.

    \b
    Examples:
      statestore --store ./states verify
      statestore --store ./states verify --fix
      statestore --store ./states verify --newer-than 1d --json
    """
    report = _Report()
    urls = [place for place in places(url) if not place.startswith("memory:")]
    for place in urls or places(url):
        with open_store(place, create=False) as store:
            _check(store, selection, report, fix=fix, lanes=threads, quiet=as_json)
            if not selection.text:
                _reconcile(store, report, grace, fix=fix)
    if as_json:
        emit_json(report.json(fix=fix))
    else:
        report.show(fix=fix)
    if report.damaged:
        ctx.exit(3)


@dataclass(slots=True)
class _Report:
    """What was found, and done."""

    checked: int = 0
    unsound: list[tuple[Entry, str, str]] = field(default_factory=list)  # problem, what was done
    left: list[LeftOver] = field(default_factory=list)
    wrong_totals: int = 0  # places whose totals were
    hidden: int = 0  # states that are there and no lookup found

    @property
    def damaged(self) -> bool:
        """Whether anything was unsound."""
        return bool(self.unsound or self.wrong_totals or self.hidden)

    @property
    def adopted(self) -> int:
        """Blobs that are in the catalog again."""
        return sum(blob.adopted for blob in self.left)

    def json(self, *, fix: bool) -> dict[str, object]:
        """For scripts."""
        said: dict[str, object] = {
            "checked": self.checked,
            "unsound": [
                {"key": str(entry.key), "problem": problem, **({"done": done} if fix else {})}
                for entry, problem, done in self.unsound
            ],
        }
        if self.left:
            said["orphans"] = [
                {"blob": blob.blob, "blob_bytes": blob.blob_bytes, "problem": blob.problem}
                | ({"adopted": blob.adopted} if fix else {})
                for blob in self.left
            ]
        if self.wrong_totals:
            said["totals"] = "summed anew" if fix else "wrong"
        if self.hidden:
            said["hidden"] = self.hidden
        return said

    def show(self, *, fix: bool) -> None:
        """For people."""
        for entry, problem, done in self.unsound:
            click.echo(f"{entry.key}  {problem}" + (f"; {done}" if done else ""))
        sound = [blob for blob in self.left if blob.entry is not None]
        for line in self._left(sound, fix=fix):
            click.echo(line)
        if self.wrong_totals:
            click.echo("totals: wrong" + (", summed anew" if fix else "; --fix sums them anew"))
        if self.hidden:
            remedy = "made anew" if fix else "--fix makes it anew"
            said = counted(self.hidden, "state")
            click.echo(f"no lookup found {said}, which the lookup filter lacks: {remedy}")
        click.echo(f"checked {self.checked}, unsound {len(self.unsound)}")

    def _left(self, sound: list[LeftOver], *, fix: bool) -> Iterator[str]:
        rest = [blob for blob in self.left if not blob.adopted and (fix or blob.entry is None)]
        if self.adopted:
            yield f"catalogued {counted(self.adopted, 'sound state')} again that no entry named"
        if sound and not fix:
            yield f"sound, but named by no entry: {_said(sound)}; --fix catalogues them"
        if rest:
            yield f"{_said(rest)} left over; `statestore gc` removes them"


def _check(
    store: StateStore, selection: Selection, report: _Report, *, fix: bool, lanes: int, quiet: bool
) -> None:
    """Check the selected states' blobs."""
    entries = (one for one in selection.entries(store) if one.status is Status.READY)
    total = None if selection.text else store.usage().blob_bytes
    with progress("checking", total, quiet=quiet) as done:
        for checked in check_all(store, entries, lanes=lanes):
            report.checked += 1
            done(checked.entry.blob_bytes)
            if checked.problem:
                mended = take_down(store, checked) if fix else ""
                report.unsound.append((*checked, mended))


def _reconcile(store: StateStore, report: _Report, grace_s: float, *, fix: bool) -> None:
    """Look at what belongs to no entry, and at the totals."""
    report.left += left_overs(store, grace_s, adopt=fix)
    place = mendable(store.backend)
    if place is None:
        if fix:  # Redis mends its orders and totals so
            store.sweep(grace_s)
        return
    report.wrong_totals += not place.recount(mend=fix)
    report.hidden += place.hidden(mend=fix)


def _said(blobs: list[LeftOver]) -> str:
    return f"{counted(len(blobs), 'blob')} ({size(sum(blob.blob_bytes for blob in blobs))})"
