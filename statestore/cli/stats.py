"""`statestore stats`: what each tier holds, by namespace and model, and what it has saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Final

import click

from statestore.backends.base import Backend
from statestore.backends.budgeted import Budgeted
from statestore.backends.tallies import Tally, tallies
from statestore.backends.wrapper import Wrapper
from statestore.cli.options import Seconds, as_json_option
from statestore.cli.premises import Premises
from statestore.cli.render import age, emit_fields, emit_json, emit_table, size
from statestore.cli.scraped import Lookups, scrape
from statestore.cli.watching import INTERVAL_S, Glance, watch
from statestore.entry import Usage
from statestore.errors import StateStoreError
from statestore.settings import open_store, tiers_of
from statestore.url import redacted


@dataclass(frozen=True, slots=True)
class Standing:
    """One tier at one moment."""

    name: str
    url: str
    usage: Usage | None = None  # ``None``: not to be seen from here
    budget_bytes: int | None = None
    groups: tuple[Tally, ...] = ()
    error: StateStoreError | None = None

    @property
    def total(self) -> Tally:
        """The sum over all namespaces and models."""
        return reduce(Tally.__add__, self.groups, Tally("", ""))


@click.command()
@click.option("--namespace", help="Only this namespace.")
@click.option(
    "--watch",
    "interval_s",
    type=Seconds(0.1),
    is_flag=False,
    flag_value=INTERVAL_S,
    metavar="[SECONDS]",
    help=f"Look again every so often, {INTERVAL_S:g} s by default, until Ctrl-C.",
)
@click.option(
    "--metrics",
    "servers",
    multiple=True,
    metavar="URL",
    help="A server's /metrics, for the hit rate of its lookups; may be repeated.",
)
@as_json_option
@click.pass_obj
def stats(
    url: str,
    namespace: str | None,
    interval_s: float | None,
    servers: Sequence[str],
    as_json: bool,
) -> None:
    """Totals of what is stored, and what hits have saved.

    Each tier has a table by namespace and model. What is saved is counted from the states that are
    stored now: what was evicted took its hits with it. "used" is the share of states with a hit.
    The hit rate of lookups is known to the servers alone: see --metrics.

    \b
    Examples:
      statestore --store ./states stats --json
      statestore --store ./states stats --watch 5
      statestore --store ./states stats --metrics http://127.0.0.1:8000/metrics
    """
    if interval_s is not None:
        watch(lambda: _glance(url, namespace, servers), interval_s, as_json=as_json)
        return
    tiers, lookups = standings(url, namespace), _lookups(servers)
    if as_json:
        emit_json({**record(tiers, namespace), **_rates(lookups)})
    else:
        _show(tiers, namespace, lookups)
    if tiers[-1].error is not None:
        raise tiers[-1].error


def standings(url: str, namespace: str | None) -> list[Standing]:
    """Every tier, nearest first.

    Raises:
        StateStoreError: the only one there is cannot be looked at.
    """
    places = tiers_of(url)
    found = [_standing(name, place, namespace) for name, place in places.items()]
    if len(found) == 1 and found[0].error is not None:
        raise found[0].error
    return found


def record(tiers: Sequence[Standing], namespace: str | None) -> dict[str, object]:
    """The last tier's totals, which holds everything, and each tier's, for JSON."""
    home = tiers[-1]
    return {
        "url": " ".join(tier.url for tier in tiers),
        "namespace": namespace,
        **_sums(home),
        "tiers": [
            {
                "tier": tier.name,
                "url": tier.url,
                **_sums(tier),
                "groups": [asdict(group) for group in tier.groups],
                "error": None if tier.error is None else str(tier.error),
            }
            for tier in tiers
        ],
    }


def _standing(name: str, place: str, namespace: str | None) -> Standing:
    shown = redacted(place)
    if place.startswith("memory:"):  # every process has its own
        return Standing(name, shown)
    try:
        patient = Premises.of(name, place).patient
        with open_store(patient, create=False) as store:
            return Standing(
                name,
                store.backend.url if patient == place else shown,
                store.usage(namespace),
                _budget(store.backend, namespace),
                tuple(tallies(store.backend, namespace)),
            )
    except StateStoreError as error:
        return Standing(name, shown, error=error)


def _sums(tier: Standing) -> dict[str, object]:
    """A tier's totals; ``None`` where it is not to be seen."""
    usage, total = tier.usage or Usage(0, 0, 0, 0, 0), tier.total
    sums = {
        "entries": usage.entries,
        "blob_bytes": usage.blob_bytes,
        "state_bytes": usage.state_bytes,
        "quarantined": usage.quarantined,
        "pinned": usage.pinned,
        "used": total.used,
        "hits": total.hits,
        "tokens_saved": total.tokens_saved,
        "seconds_saved": total.seconds_saved,
    }
    known = sums if tier.usage is not None else dict.fromkeys(sums)
    return {"budget_bytes": tier.budget_bytes, **known}


def _lookups(servers: Sequence[str]) -> Lookups | None:
    return scrape(servers) if servers else None


def _rates(lookups: Lookups | None) -> dict[str, object]:
    if lookups is None:
        return {}
    return {
        "lookups": dict(lookups.outcomes),
        "hit_rate": lookups.hit_rate,
        "tier_hits": dict(lookups.tiers),
    }


def _glance(url: str, namespace: str | None, servers: Sequence[str]) -> Glance:
    """What a watcher sees: the last tier's totals in a line, and all as a table."""
    tiers, lookups = standings(url, namespace), _lookups(servers)
    home = tiers[-1]
    if home.error is not None:
        raise home.error
    total, usage = home.total, home.usage
    counts = {"hits": total.hits, "tokens saved": total.tokens_saved}
    if usage is not None:
        counts = {"entries": usage.entries, "bytes": usage.blob_bytes, **counts}
    if lookups is not None:
        counts |= {"lookups": lookups.outcomes.total(), "found": lookups.outcomes["hit"]}
    rows = [row for tier in tiers for row in _rows(tier)]
    return Glance({**record(tiers, namespace), **_rates(lookups)}, counts, _COLUMNS, rows, SPARE)


_COLUMNS: Final = (
    "tier", "namespace", "model", ">entries", ">stored", ">pinned", ">hits", ">used",
    ">tokens saved", ">time saved",
)  # fmt: skip


#: What a narrow terminal goes without, the first ones first.
SPARE: Final = (">used", ">pinned", ">hits", ">time saved", "namespace")


def _show(tiers: Sequence[Standing], namespace: str | None, lookups: Lookups | None) -> None:
    for number, tier in enumerate(tiers):
        if number:
            click.echo()
        name = {"tier": tier.name} if len(tiers) > 1 else {}
        limits = {} if namespace is None else {"namespace": namespace}
        emit_fields({**name, "store": tier.url, **limits, **_fields(tier)})
    rows = [row for tier in tiers for row in _rows(tier)]
    if rows:
        click.echo()
        emit_table(_COLUMNS, rows, spare=SPARE)
    if lookups is not None:
        rate = "-" if lookups.hit_rate is None else f"{lookups.hit_rate:.1%}"
        tiers_ = "".join(f", {count:,} in {name}" for name, count in lookups.tiers.items())
        click.echo(
            f"\nlookups  {lookups.outcomes.total():,}, of which {rate} found a state{tiers_}"
        )


def _fields(tier: Standing) -> dict[str, object]:
    if tier.error is not None:
        return {"error": tier.error}
    if tier.usage is None:
        return {"entries": "not to be seen from here: every process has its own memory"}
    usage, total, limit = tier.usage, tier.total, tier.budget_bytes
    ratio = usage.blob_bytes / usage.state_bytes if usage.state_bytes else 0.0
    within = "" if limit is None else f" of {size(limit)}, {usage.blob_bytes / limit:.0%}"
    return {
        "entries": usage.entries,
        "stored": size(usage.blob_bytes) + within,
        "decoded": f"{size(usage.state_bytes)}, stored at {ratio:.2f} of it",
        "quarantined": usage.quarantined,
        "pinned": usage.pinned,
        "hits": f"{total.hits:,}, on {_share(total)} of the states",
        "saved": f"{total.tokens_saved:,} tokens, {age(total.seconds_saved)} of computing",
    }


def _rows(tier: Standing) -> Iterator[Sequence[str]]:
    for group in tier.groups:
        yield (
            tier.name,
            group.namespace,
            group.model or "-",
            f"{group.entries:,}",
            size(group.blob_bytes),
            str(group.pinned),
            f"{group.hits:,}",
            _share(group),
            f"{group.tokens_saved:,}",
            age(group.seconds_saved),
        )


def _share(tally: Tally) -> str:
    return f"{tally.used / tally.entries:.0%}" if tally.entries else "-"


def _budget(backend: Backend, namespace: str | None) -> int | None:
    """The bytes that the URL allows, in all or for a namespace."""
    while isinstance(backend, Wrapper):
        if isinstance(backend, Budgeted):
            budget = backend.budget
            return budget.total_bytes if namespace is None else budget.namespaces.get(namespace)
        backend = backend.inner
    return None
