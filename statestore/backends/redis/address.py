"""Where a Redis store lives: its URL taken apart. Pure.

    redis://[user:password@]host[:6379][/db]                   one server
    rediss://...                                               the same over TLS
    unix:///run/redis.sock[?db=0]                              the same over a socket file
    redis+sentinel://[...@]host[:26379],host,.../service[/db]  the primary that Sentinel names
    redis+cluster://[...@]host[:6379],host,...                 a Cluster; any of its nodes will do
    rediss+sentinel://, rediss+cluster://                      over TLS

Options: `OPTIONS`. A URL that is shown (`Address.url`, messages) never holds credentials.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, unquote, urlencode, urlsplit

from statestore.errors import SettingsError

SCHEMES: Final = (
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
TLS_FILES: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
TLS_OPTIONS: Final = TLS_FILES | {"ssl_cert_reqs"}
CERT_REQS: Final = ("required", "optional", "none")
SECRET_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
OPTIONS: Final = (
    "prefix",
    "connect_timeout_s",
    "timeout_s",
    "db",
    *sorted(TLS_OPTIONS | SECRET_OPTIONS),
)
DEFAULT_PREFIX: Final = "statestore"
CONNECT_TIMEOUT_S: Final = 0.25
TIMEOUT_S: Final = 2.0
LONGEST_S: Final = 3600.0

_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_PORTS: Final = {"sentinel": 26379, "cluster": 6379, "": 6379}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password; either may be absent."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Address:
    """Which servers, and how to talk to them."""

    url: str  # opens the same place again, without secrets
    kind: str  # "", "sentinel" or "cluster"
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    socket_path: str  # "" unless it is a socket file
    service: str  # what Sentinel calls the primary; "" without Sentinel
    db: int
    prefix: str
    connect_timeout_s: float
    timeout_s: float  # of one send or receive
    tls_options: Mapping[str, str]
    user: Credentials
    sentinel_user: Credentials

    @classmethod
    def of(cls, scheme: str, netloc: str, path: str, options: Mapping[str, str]) -> Address:
        """The address of a URL's pieces; `path` is percent-decoded, `options` are of `OPTIONS`.

        Raises:
            SettingsError: a piece or an option means nothing.
        """
        userinfo, _, hosts = netloc.rpartition("@")
        url = _shown(scheme, hosts, path, options)
        tls, kind = scheme.startswith("rediss"), scheme.partition("+")[2]
        if not tls and (given := TLS_OPTIONS & set(options)):
            raise SettingsError(f"store URL {url}: {min(given)} needs rediss://")
        if (checks := options.get("ssl_cert_reqs", CERT_REQS[0])) not in CERT_REQS:
            known = ", ".join(CERT_REQS)
            raise SettingsError(f"store URL {url}: ssl_cert_reqs is {known}, not {checks!r}")
        names = [] if scheme == "unix" else path.strip("/").split("/")
        service = names.pop(0) if kind == "sentinel" else ""
        if kind == "sentinel" and not service:
            raise SettingsError(f"store URL {url}: name Sentinel's service: ...host:26379/service")
        if scheme == "unix" and (hosts or not path.startswith("/")):
            raise SettingsError(f"store URL {url}: a socket's path is absolute: unix:///run/r.sock")
        if not kind and "," in hosts:
            raise SettingsError(
                f"store URL {url}: one host, or write redis+cluster:// or redis+sentinel://"
            )
        return cls(
            url=url,
            kind=kind,
            tls=tls,
            hosts=() if scheme == "unix" else _hosts(hosts, _PORTS[kind], url),
            socket_path=path if scheme == "unix" else "",
            service=service,
            db=_db(kind, [name for name in names if name], options, url),
            prefix=_prefix(options.get("prefix", DEFAULT_PREFIX), url),
            connect_timeout_s=_seconds(options, "connect_timeout_s", CONNECT_TIMEOUT_S, url),
            timeout_s=_seconds(options, "timeout_s", TIMEOUT_S, url),
            tls_options={name: options[name] for name in TLS_OPTIONS & set(options)},
            user=_credentials(userinfo),
            sentinel_user=Credentials(
                options.get("sentinel_username"), options.get("sentinel_password")
            ),
        )


def _shown(scheme: str, hosts: str, path: str, options: Mapping[str, str]) -> str:
    shown = {name: options[name] for name in sorted(options) if name not in SECRET_OPTIONS}
    query = f"?{urlencode(shown)}" if shown else ""
    return f"{scheme}://{hosts}{quote(path)}{query}"


def _hosts(text: str, port: int, url: str) -> tuple[tuple[str, int], ...]:
    try:
        parts = [urlsplit(f"//{host}") for host in text.split(",") if host]
        hosts = tuple((part.hostname or "localhost", part.port or port) for part in parts)
    except ValueError as error:
        raise SettingsError(f"store URL {url}: {error}") from None
    return hosts or (("localhost", port),)


def _db(kind: str, names: list[str], options: Mapping[str, str], url: str) -> int:
    given = names + [value for name, value in options.items() if name == "db"]
    if not given:
        return 0
    if kind == "cluster" or len(given) > 1 or not re.fullmatch(r"[0-9]{1,5}", given[0]):
        where = "a Cluster has one database" if kind == "cluster" else "one number, as in /0"
        raise SettingsError(f"store URL {url}: database {'/'.join(given)!r}: {where}")
    return int(given[0])


def _prefix(text: str, url: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise SettingsError(
            f"store URL {url}: prefix {text!r}: 1 to 64 of letters, digits and _ . : -"
        )
    return text


def _seconds(options: Mapping[str, str], name: str, default: float, url: str) -> float:
    text = options.get(name)
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_S:
        raise SettingsError(
            f"store URL {url}: {name} is a number of seconds above 0, at most {LONGEST_S:g}, "
            f"not {text!r}"
        )
    return seconds


def _credentials(userinfo: str) -> Credentials:
    username, colon, password = userinfo.partition(":")
    return Credentials(unquote(username) or None, unquote(password) if colon else None)
