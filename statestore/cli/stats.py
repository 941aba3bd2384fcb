"""`statestore stats`: totals of what is stored."""

from __future__ import annotations

import click

from statestore.backends.base import Backend
from statestore.backends.budgeted import Budgeted
from statestore.backends.wrapper import Wrapper
from statestore.cli.options import as_json_option
from statestore.cli.render import emit_fields, emit_json, size
from statestore.settings import open_store


@click.command()
@click.option("--namespace", help="Only this namespace.")
@as_json_option
@click.pass_obj
def stats(url: str, namespace: str | None, as_json: bool) -> None:
    """Totals of what is stored.

    Of several tiers, those of the last one, which holds everything.

    \b
    Example:
      statestore --store ./states stats --json
    """
    with open_store(url, create=False) as store:
        usage = store.usage(namespace)
        place = store.backend.url
        limit = _budget(store.backend, namespace)
    if as_json:
        emit_json(
            {
                "url": place,
                "namespace": namespace,
                "budget_bytes": limit,
                "entries": usage.entries,
                "blob_bytes": usage.blob_bytes,
                "state_bytes": usage.state_bytes,
                "quarantined": usage.quarantined,
                "pinned": usage.pinned,
            }
        )
        return
    ratio = usage.blob_bytes / usage.state_bytes if usage.state_bytes else 0.0
    within = "" if limit is None else f" of {size(limit)}, {usage.blob_bytes / limit:.0%}"
    emit_fields(
        {
            "store": place,
            **({} if namespace is None else {"namespace": namespace}),
            "entries": usage.entries,
            "stored": size(usage.blob_bytes) + within,
            "decoded": f"{size(usage.state_bytes)}, stored at {ratio:.2f} of it",
            "quarantined": usage.quarantined,
            "pinned": usage.pinned,
        }
    )


def _budget(backend: Backend, namespace: str | None) -> int | None:
    """The bytes that the URL allows, in all or for a namespace."""
    while isinstance(backend, Wrapper):
        if isinstance(backend, Budgeted):
            budget = backend.budget
            return budget.total_bytes if namespace is None else budget.namespaces.get(namespace)
        backend = backend.inner
    return None
