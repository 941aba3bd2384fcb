"""`statestore stats`: what each tier holds, by namespace and model, and what it has saved."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

import click

from statestore.backends.tallies import Tally
from statestore.cli.options import Seconds, as_json_option
from statestore.cli.render import age, counted, emit_fields, emit_json, emit_table, size
from statestore.cli.scraped import Lookups, scrape
from statestore.cli.standing import Standing, answered, record, standings
from statestore.cli.watching import INTERVAL_S, Glance, watch


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
    help="A server's /metrics, for what it has looked up since it began; may be repeated.",
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
    """Totals of what is stored, the hit rate of lookups, and what hits have saved.

    Each tier has a table by namespace and model. A lookup is a prompt that a runtime looked for; of
    several tiers the nearest is asked first, the next ones for what it has not. "hit rate" is the
    share of lookups that a tier's state answered, "token rate" the share of the prompts' tokens
    that those states spared. Processes add what they counted every 5 s and when they end: the
    counts of a killed one's last seconds are lost. Nothing is taken away from them; commands like
    explain, doctor and ls add nothing.

    Where the URL sets limits (see `statestore --help`), "stored" says how much of the budget is
    taken, a line "of NAME" the same of a namespace, "room" when room is made, "ttl" when states
    expire.

    "hits", "used" (the share of states with a hit) and what is saved are those of the states that
    are stored now: what was evicted took its hits with it.

    \b
    Examples:
      statestore --store ./states stats --json
      statestore --store ./states stats --watch 5
      statestore --store ./states stats --metrics http://127.0.0.1:8000/metrics
    """
    if interval_s is not None:
        watch(lambda: _glance(url, namespace, servers), interval_s, as_json=as_json)
        return
    tiers, scraped = standings(url, namespace), _scraped(servers)
    if as_json:
        emit_json({**record(tiers, namespace), **_of_servers(scraped)})
    else:
        _show(tiers, namespace, scraped)
    if tiers[-1].error is not None:
        raise tiers[-1].error


def _scraped(servers: Sequence[str]) -> Lookups | None:
    return scrape(servers) if servers else None


def _of_servers(scraped: Lookups | None) -> dict[str, object]:
    if scraped is None:
        return {}
    rates = {
        "lookups": dict(scraped.outcomes),
        "hit_rate": scraped.hit_rate,
        "tier_hits": dict(scraped.tiers),
    }
    return {"servers": rates}


def _glance(url: str, namespace: str | None, servers: Sequence[str]) -> Glance:
    """What a watcher sees: the last tier's totals in a line, and all as a table."""
    tiers, scraped = standings(url, namespace), _scraped(servers)
    home = tiers[-1]
    if home.error is not None:
        raise home.error
    total, usage, asked = home.total, home.usage, answered(tiers)
    counts = {"hits": total.hits, "tokens saved": total.tokens_saved}
    if usage is not None:
        counts = {"entries": usage.entries, "bytes": usage.blob_bytes, **counts}
    if asked is not None:
        counts |= {"lookups": asked.lookups, "found": asked.found}
    if scraped is not None:
        counts |= {
            "servers' lookups": scraped.outcomes.total(),
            "servers' hits": scraped.outcomes["hit"],
        }
    rows = [row for tier in tiers for row in _rows(tier)]
    seen = {**record(tiers, namespace), **_of_servers(scraped)}
    return Glance(seen, counts, _COLUMNS, rows, _spare(rows))


_COLUMNS: Final = (
    "tier", "namespace", "model", ">entries", ">stored", ">pinned", ">hits", ">used",
    ">tokens saved", ">time saved", ">lookups", ">hit rate", ">token rate",
)  # fmt: skip


#: What a narrow terminal goes without, the first ones first; then what all rows have in common.
_SPARE: Final = (">used", ">pinned", ">hits", ">token rate", ">lookups", ">time saved")


def _spare(rows: Sequence[Sequence[str]]) -> list[str]:
    common = [
        name
        for name in ("tier", "model", "namespace")
        if len({row[_COLUMNS.index(name)] for row in rows}) == 1
    ]
    return [*_SPARE, *common, ">hit rate"]


def _show(tiers: Sequence[Standing], namespace: str | None, scraped: Lookups | None) -> None:
    for number, tier in enumerate(tiers):
        if number:
            click.echo()
        name = {"tier": tier.name} if len(tiers) > 1 else {}
        limits = {} if namespace is None else {"namespace": namespace}
        emit_fields({**name, "store": tier.url, **limits, **_fields(tier)})
    rows = [row for tier in tiers for row in _rows(tier)]
    if rows:
        click.echo()
        emit_table(_COLUMNS, rows, spare=_spare(rows))
    whole = answered(tiers) if len(tiers) > 1 else None
    if whole is not None and whole.lookups:
        click.echo(f"\nall tiers  {_asked(whole)}")
    if scraped is not None:
        tiers_ = "".join(f", {count:,} in {name}" for name, count in scraped.tiers.items())
        total = counted(scraped.outcomes.total(), "lookup")
        click.echo(f"\nservers  {total}, of which {_rate(scraped.hit_rate)} found a state{tiers_}")


def _fields(tier: Standing) -> dict[str, object]:
    if tier.error is not None:
        return {"error": tier.error}
    lookups = {"lookups": _asked(tier.total)}
    if tier.usage is None:
        own = "not to be seen from here: every process has its own memory"
        return {"entries": own, **_room(tier), **(lookups if tier.total.lookups else {})}
    usage, total = tier.usage, tier.total
    ratio = f", stored at {usage.blob_bytes / (usage.state_bytes or 1):.2f} of it"
    return {
        "entries": f"{usage.entries:,}",
        "stored": _within(usage.blob_bytes, tier.budget_bytes),
        **_room(tier),
        "decoded": size(usage.state_bytes) + (ratio if usage.state_bytes else ""),
        "quarantined": f"{usage.quarantined:,}",
        "pinned": f"{usage.pinned:,}" + (f", {size(usage.pinned_bytes)}" if usage.pinned else ""),
        "hits": f"{total.hits:,}"
        + (f", on {_share(total)} of the states" if total.entries else ""),
        "saved": f"{total.tokens_saved:,} tokens, {age(total.seconds_saved)} of computing",
        **lookups,
    }


def _within(count: int, budget: int | None) -> str:
    return size(count) + (f" of {size(budget)}, {count / budget:.0%}" if budget else "")


def _room(tier: Standing) -> dict[str, object]:
    """The budgets of namespaces, when room is made and how, and how long states stay."""
    if tier.limits is None:
        return {}
    told = {"room": tier.limits.marks, "ttl": tier.limits.lifetime}
    if tier.usage is None and tier.budget_bytes is not None:
        told = {"budget": size(tier.budget_bytes), **told}
    held = {
        f"  of {name}": _within(tier.held[name], tier.limits.bytes_of(name)) for name in tier.held
    }
    return {**held, **{name: text for name, text in told.items() if text}}


def _asked(total: Tally) -> str:
    """Of all lookups: how many, since when, what was found."""
    if not total.lookups:
        return "none yet"
    since = "" if total.since is None else f" in {age(time.time() - total.since)}"
    return (
        f"{total.lookups:,}{since}, of which {_rate(total.hit_rate)} found a state, with "
        f"{_rate(total.token_hit_rate)} of the tokens: {age(total.seconds_found)} of computing"
    )


def _rows(tier: Standing) -> Iterator[Sequence[str]]:
    for group in tier.groups:
        yield (
            tier.name,
            group.namespace or "(others)",
            group.model or "-",
            f"{group.entries:,}",
            size(group.blob_bytes),
            str(group.pinned),
            f"{group.hits:,}",
            _share(group),
            f"{group.tokens_saved:,}",
            age(group.seconds_saved),
            f"{group.lookups:,}",
            _rate(group.hit_rate),
            _rate(group.token_hit_rate),
        )


def _share(tally: Tally) -> str:
    return f"{tally.used / tally.entries:.0%}" if tally.entries else "-"


def _rate(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
