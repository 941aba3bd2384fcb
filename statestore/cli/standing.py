"""What each tier of a store holds at one moment, and what it was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce

from statestore.backends.lookups import LookupSums
from statestore.backends.tallies import Tally, by_fingerprint, joined, lookups
from statestore.cli.limits import Limits
from statestore.cli.premises import Premises
from statestore.entry import Usage
from statestore.errors import StateStoreError
from statestore.settings import open_store, tiers_of
from statestore.store import StateStore
from statestore.url import redacted


@dataclass(frozen=True, slots=True)
class Standing:
    """One tier at one moment."""

    name: str
    url: str
    usage: Usage | None = None  # ``None``: not to be seen from here
    limits: Limits | None = None  # ``None``: the URL sets none, or means nothing
    held: Mapping[str, int] = field(default_factory=dict)  # bytes of each namespace with a budget
    namespace: str | None = None  # that was asked about; ``None``: all
    stored: tuple[tuple[bytes, Tally], ...] = ()  # by fingerprint
    asked: tuple[LookupSums, ...] = ()  # of this tier, and of nearer ones that it keeps them for
    error: StateStoreError | None = None

    @property
    def budget_bytes(self) -> int | None:
        """Of all, or of the namespace that was asked about."""
        return None if self.limits is None else self.limits.bytes_of(self.namespace)

    @property
    def groups(self) -> list[Tally]:
        """By namespace and model."""
        groups = joined(self.stored, [row for row in self.asked if not row.tier])
        return [group for group in groups if group.entries or group.lookups]

    @property
    def total(self) -> Tally:
        """The sum over all namespaces and models."""
        return reduce(Tally.__add__, self.groups, Tally("", ""))

    def keeps_for(self, tier: Standing) -> Standing:
        """`tier`, which every process has of its own, with the lookups that this home keeps."""
        names = tuple((mark, Tally(one.namespace, one.model)) for mark, one in self.stored)
        asked = tuple(replace(row, tier="") for row in self.asked if row.tier == tier.name)
        return replace(tier, stored=names, asked=asked)


def standings(url: str, namespace: str | None) -> list[Standing]:
    """Every tier, nearest first.

    Raises:
        StateStoreError: the only one there is cannot be looked at.
    """
    places = tiers_of(url)
    *near, home = [_standing(name, place, namespace) for name, place in places.items()]
    if not near and home.error is not None:
        raise home.error
    own = [tier.usage is None and tier.error is None for tier in near]
    return [*(home.keeps_for(t) if mine else t for t, mine in zip(near, own, strict=True)), home]


def answered(tiers: Sequence[Standing]) -> Tally | None:
    """The lookups of the store as a whole: what the nearest tier was asked, and any tier found.

    ``None`` where that is not to be told: a tier is down, or others come to the home directly.
    """
    totals = [tier.total for tier in tiers]
    first, found = totals[0], sum(total.found for total in totals)
    if found > first.lookups or any(tier.error is not None for tier in tiers):
        return None
    return replace(
        first,
        found=found,
        tokens_found=sum(total.tokens_found for total in totals),
        seconds_found=sum(total.seconds_found for total in totals),
    )


def record(tiers: Sequence[Standing], namespace: str | None) -> dict[str, object]:
    """For JSON: the last tier's totals, which holds everything, with the lookups of the whole
    store; and each tier's own.
    """
    home = tiers[-1]
    return {
        "url": " ".join(tier.url for tier in tiers),
        "namespace": namespace,
        **_sums(home),
        **_rates(answered(tiers)),
        "tiers": [
            {
                "tier": tier.name,
                "url": tier.url,
                **_sums(tier),
                **_rates(None if tier.error is not None else tier.total),
                "groups": [{**asdict(group), **_rates(group)} for group in tier.groups],
                "error": None if tier.error is None else str(tier.error),
            }
            for tier in tiers
        ],
    }


def _standing(name: str, place: str, namespace: str | None) -> Standing:
    shown = redacted(place)
    try:
        if place.startswith("memory:"):  # every process has its own
            with open_store(place) as store:
                return Standing(name, shown, limits=Limits.of(store.backend), namespace=namespace)
        patient = Premises.of(name, place).patient
        with open_store(patient, create=False) as store:
            limits = Limits.of(store.backend)
            return Standing(
                name,
                store.backend.url if patient == place else shown,
                store.usage(namespace),
                limits,
                _held(store, limits, namespace),
                namespace,
                tuple(by_fingerprint(store.backend, namespace)),
                tuple(lookups(store.backend, namespace)),
            )
    except StateStoreError as error:
        return Standing(name, shown, namespace=namespace, error=error)


def _held(store: StateStore, limits: Limits | None, namespace: str | None) -> dict[str, int]:
    """What each namespace with a budget holds; a namespace that was asked about stands alone."""
    names = [] if limits is None or namespace is not None else limits.namespaces
    return {name: store.usage(name).blob_bytes for name in names}


def _limits(tier: Standing) -> dict[str, object] | None:
    if tier.limits is None:
        return None
    limits = tier.limits
    return {
        **asdict(limits),
        "namespaces": {
            name: {"budget_bytes": count, "blob_bytes": tier.held.get(name)}
            for name, count in limits.namespaces.items()
        },
    }


def _sums(tier: Standing) -> dict[str, object]:
    """A tier's totals; ``None`` where it is not to be seen."""
    usage, total = tier.usage or Usage(0, 0, 0, 0, 0), tier.total
    sums = {
        "entries": usage.entries,
        "blob_bytes": usage.blob_bytes,
        "state_bytes": usage.state_bytes,
        "quarantined": usage.quarantined,
        "pinned": usage.pinned,
        "pinned_bytes": usage.pinned_bytes,
        "used": total.used,
        "hits": total.hits,
        "tokens_saved": total.tokens_saved,
        "seconds_saved": total.seconds_saved,
    }
    known = sums if tier.usage is not None else dict.fromkeys(sums)
    return {"budget_bytes": tier.budget_bytes, "limits": _limits(tier), **known}


def _rates(total: Tally | None) -> dict[str, object]:
    """What was asked and found; ``None`` where that is not known."""
    asked = total or Tally("", "")
    rates: dict[str, object] = {
        "lookups": asked.lookups,
        "found": asked.found,
        "hit_rate": asked.hit_rate,
        "tokens_asked": asked.tokens_asked,
        "tokens_found": asked.tokens_found,
        "token_hit_rate": asked.token_hit_rate,
        "seconds_found": asked.seconds_found,
        "since": asked.since,
    }
    return rates if total is not None else dict.fromkeys(rates, None)
