"""What servers say of their lookups: hit rates are known to processes, not to the catalog."""

from __future__ import annotations

import urllib.request
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final
from urllib.parse import unquote_to_bytes, urlsplit

from prometheus_client.parser import text_string_to_metric_families

from statestore.errors import SettingsError, UnavailableError
from statestore.url import redacted

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
    name = f"--metrics {_shown(url)}"
    request = _request(url, name)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - http, https
            text = answer.read(_MAX_BYTES).decode()
        families = list(text_string_to_metric_families(text))
    except HTTPException as error:  # its words may be the URL's
        raise UnavailableError(f"{name}: {type(error).__name__}; is it an HTTP server?") from None
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{name}: {error}") from error
    return [(s.name, s.labels, s.value) for family in families for s in family.samples]


def _request(url: str, name: str) -> urllib.request.Request:
    """What asks for `url`; a user and password in it are sent, to that server alone."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise SettingsError(f"{name}: write for example http://127.0.0.1:8000/metrics")
    user, _, place = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=place).geturl())  # noqa: S310 - as above
    if user:
        secret = b64encode(unquote_to_bytes(user)).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def _shown(url: str) -> str:
    """`url` without what may be secret: a password, a token in the query."""
    place, query, _ = redacted(url).partition("?")
    return place + (query and "?***")
