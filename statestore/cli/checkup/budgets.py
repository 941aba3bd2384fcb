"""Budgets: whether they are kept, and what pinned states leave of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from statestore.cli.checkup.finding import Finding
from statestore.cli.limits import Limits
from statestore.cli.render import size
from statestore.entry import Usage
from statestore.store import StateStore

_PINNED_SHARE: Final = 0.8  # of a budget: what is left hardly changes what is found


def budget_findings(store: StateStore, usage: Usage, limits: Limits) -> Iterator[Finding]:
    """What there is to say of each budget, and of a ttl."""
    said = [f"room is {limits.marks}"] if limits.marks else []
    said += [f"states expire {limits.lifetime}"] if limits.lifetime else []
    if said:
        marks = {"high": limits.high, "low": limits.low, "ttl_s": limits.ttl_s}
        yield Finding.good("limits", "; ".join(said), policy=limits.policy, **marks)
    if limits.total_bytes is not None:
        yield from _findings("", limits.total_bytes, usage, limits)
    for name, count in limits.namespaces.items():
        held = store.usage(name)
        text = f"namespace {name} holds {size(held.blob_bytes)} of {size(count)}"
        facts = {"namespace": name, "blob_bytes": held.blob_bytes, "budget_bytes": count}
        yield Finding.good("budget", text, **facts)
        yield from _findings(name, count, held, limits)


def _findings(name: str, count: int, held: Usage, limits: Limits) -> Iterator[Finding]:
    """What is wrong with one budget of `count` bytes; `name`: of a namespace, ``""``: of all."""
    whose, only = (f" of namespace {name}", f"--namespace {name} ") if name else ("", "")
    if held.blob_bytes > count:
        yield Finding.doubtful(
            "budget",
            f"{size(held.blob_bytes)} are stored, more than the budget{whose} of {size(count)}",
            f"`statestore evict {only}--to {count}` makes room now, the next put otherwise",
        )
    share = min(limits.high, limits.low or limits.high, _PINNED_SHARE)
    if held.pinned_bytes > share * count:
        yield Finding.doubtful(
            "pins",
            f"pinned states hold {size(held.pinned_bytes)} of the budget{whose} of {size(count)}: "
            "others have hardly any room",
            f"`statestore ls {only}--pinned --sort size` lists them; unpin some, or raise it",
            pinned_bytes=held.pinned_bytes,
        )
    if name and limits.total_bytes is not None and count > limits.total_bytes:
        yield Finding.doubtful(
            "budget",
            f"the budget{whose}, {size(count)}, is more than that of all, "
            f"{size(limits.total_bytes)}",
            "lower it, or raise budget=",
        )
