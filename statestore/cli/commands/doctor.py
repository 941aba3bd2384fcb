"""`statestore doctor`: what is configured, reachable, writable, slow, and what to do about it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Final

import click

from statestore.cli.checkup import Finding, Level, examine, settings_findings
from statestore.cli.options import as_json_option, pass_config
from statestore.cli.premises import Premises
from statestore.cli.render import counted, emit_json
from statestore.config import Config
from statestore.settings import tiers_of

_MARKS: Final = {
    Level.OK: ("✓", "+", "green"),
    Level.WARNING: ("!", "!", "yellow"),
    Level.FAILURE: ("✗", "x", "red"),
}


@click.command()
@as_json_option
@pass_config
@click.pass_context
def doctor(ctx: click.Context, settings: Config, as_json: bool) -> None:
    """Look at settings, places and speed, and say what to do about what is wrong.

    Every tier is looked at by itself: opened, written to and read from, in a namespace that is
    removed again. Exits with 0 where nothing fails, warnings or none; else with the first failure's
    code.

    \b
    Examples:
      statestore doctor
      statestore --store ./states doctor --json
    """
    told = _Told(quiet=as_json)
    told.section("settings", "", settings_findings(settings))
    for name, text in tiers_of(settings.store.url).items():
        place = Premises.of(name, text)
        told.section(name, str(place.url), examine(place))
    if as_json:
        emit_json(told.record())
    else:
        told.summarise()
    ctx.exit(told.exit_code)


class _Told:
    """What was found so far, printed as it comes unless `quiet`."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._sections: list[tuple[str, str, list[Finding]]] = []

    @property
    def exit_code(self) -> int:
        """Of the first failure; 0 where there is none."""
        return next((finding.exit_code for finding in self._all() if finding.exit_code), 0)

    def section(self, name: str, url: str, findings: Iterable[Finding]) -> None:
        """Look at one place."""
        found: list[Finding] = []
        self._sections.append((name, url, found))
        if not self._quiet:
            click.secho(f"{name}  {url}".rstrip(), bold=True)
        for finding in findings:
            found.append(finding)
            if not self._quiet:
                _print(finding)

    def record(self) -> dict[str, object]:
        """All of it for JSON."""
        return {
            "healthy": self.exit_code == 0,
            "exit_code": self.exit_code,
            "sections": [
                {"name": name, "url": url, "findings": [asdict(finding) for finding in found]}
                for name, url, found in self._sections
            ],
        }

    def summarise(self) -> None:
        """Print how it stands, in a line."""
        levels = Counter(finding.level for finding in self._all())
        failures, warnings = levels[Level.FAILURE], levels[Level.WARNING]
        if failures:
            more = f", {counted(warnings, 'warning')}" if warnings else ""
            click.secho(f"\nnot healthy: {counted(failures, 'failure')}{more}", fg="red")
        elif warnings:
            click.secho(f"\nhealthy, with {counted(warnings, 'warning')}", fg="yellow")
        else:
            click.secho("\nhealthy", fg="green")

    def _all(self) -> Iterator[Finding]:
        for _, _, found in self._sections:
            yield from found


def _is_writable(mark: str) -> bool:
    """Whether the locale has it: as ``?`` all marks would be the same."""
    try:
        mark.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _print(finding: Finding) -> None:
    mark, plain, colour = _MARKS[finding.level]
    mark = mark if _is_writable(mark) else plain
    click.echo(f"  {click.style(mark, fg=colour)} {finding.check:<11} {finding.text}")
    if finding.remedy:
        click.echo(f"    {'':<11} -> {finding.remedy}")
