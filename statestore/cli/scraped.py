"""What servers say of their lookups: hit rates are known to processes, not to the catalog."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from statestore.errors import SettingsError, UnavailableError

_TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 16 << 20  # 16 MiB


@dataclass(frozen=True, slots=True)
class Lookups:
    """Sums over servers, since each of them began."""

    outcomes: Counter[str]  # hit, miss, error
    tiers: Counter[str]  # lookups that each tier answered; empty where there is one place

    @property
    def hit_rate(self) -> float | None:
        """The share of lookups that found a state; ``None`` before the first."""
        total = self.outcomes.total()
        return self.outcomes["hit"] / total if total else None


def scrape(urls: Iterable[str]) -> Lookups:
    """The lookups that the servers with these ``/metrics`` have counted.

    Raises:
        SettingsError: a URL is not of http or https.
        UnavailableError: a server does not answer with metrics.
    """
    lookups = Lookups(Counter(), Counter())
    for url in urls:
        for name, labels, value in _samples(url):
            if name == "statestore_lookups_total":
                lookups.outcomes[labels.get("outcome", "")] += round(value)
            elif name == "statestore_tier_hits_total":
                lookups.tiers[labels.get("tier", "")] += round(value)
    return lookups


def _samples(url: str) -> list[tuple[str, dict[str, str], float]]:
    if not url.startswith(("http://", "https://")):
        raise SettingsError(f"--metrics {url}: write for example http://127.0.0.1:8000/metrics")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - looked at above
            text = answer.read(_MAX_BYTES).decode()
        families = list(text_string_to_metric_families(text))
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise UnavailableError(f"--metrics {url}: {error}") from error
    return [(s.name, s.labels, s.value) for family in families for s in family.samples]
