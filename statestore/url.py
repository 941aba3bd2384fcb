"""A store's URL taken apart, and the numbers that its options hold. Pure; opens nothing.

    scheme://[user:secret@]host/path?option=value     one place
    ./states?codec=raw                                a bare directory means file://
    memory:?budget=1GiB file:///var/lib/states        several: white space ahead of a scheme, or of
                                                      / ./ ../ ~/, parts them, nearest first

A secret in a URL is never shown: what is printed of one is `redacted`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from statestore.errors import SettingsError

_PASSWORD: Final = re.compile(
    # also where // was forgotten, or the scheme of a further tier
    r"((?::/{1,2}|(?:^|(?<=\s))(?!\w[\w+.-]*:/))[^:/?#@]*):(?s:.*)@"
    r"|([?&](?:[a-z_]*password|secret_access_key|session_token|keys(?==[0-9a-fA-F]{64})))=[^&]*",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_BARE_OPTIONS: Final = re.compile(r"\?(?=[a-z_]+(?:\.[^=]*)?=)")
_NEXT_PLACE: Final = re.compile(r"\s+(?=(?i:memory:|[a-z][a-z0-9+]*://)|(?:\.{0,2}|~[^/\s]*)/)")

_BYTES: Final = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("kMGTP", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)},
}
_MOST_BYTES: Final = 1 << 62
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SHARE: Final = re.compile(r"([0-9]*\.?[0-9]+)\s*(%?)")
_AMOUNT: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def places(text: str) -> list[str]:
    """The URLs that make up a store's, nearest first."""
    return _NEXT_PLACE.split(text.strip())


def redacted(url: str) -> str:
    """`url` with ``***`` for its passwords, for messages."""
    return " ".join(_PASSWORD.sub(_hidden, place) for place in places(url))


def _hidden(found: re.Match[str]) -> str:
    return f"{found[1]}:***@" if found[1] else f"{found[2]}=***"


def size_bytes(text: str, what: str) -> int:
    """``"50GiB"``, ``"200 MB"`` or ``"4096"`` in bytes.

    Raises `SettingsError`, which begins with `what`; also for what no catalog can count.
    """
    count = int(_amount(text, what, _BYTES, "a size such as 50GiB, 200MB or 4096"))
    if count > _MOST_BYTES:
        raise SettingsError(f"{what}: {text!r} is more than any store holds")
    return count


def duration_s(text: str, what: str) -> float:
    """``"7d"``, ``"12h"``, ``"30m"``, ``"1.5s"`` or ``"90"`` in seconds.

    Raises `SettingsError`, which begins with `what`.
    """
    return _amount(text, what, _SECONDS, "a time such as 7d, 12h, 30m or 90s")


def share(text: str, what: str) -> float:
    """``"0.95"`` or ``"95%"`` as a number. Raises `SettingsError`, which begins with `what`."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"{what}: {text!r} is not a share such as 0.95 or 95%")
    return float(match[1]) / (100 if match[2] else 1)


def _amount(text: str, what: str, units: Mapping[str, int], wanted: str) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    unit = units.get(match[2]) if match else None
    if match is None or unit is None or not math.isfinite(amount := float(match[1]) * unit):
        raise SettingsError(f"{what}: {text!r} is not {wanted}")
    return amount


@dataclass(frozen=True, slots=True)
class StoreURL:
    """The URL of one place, taken apart."""

    scheme: str
    netloc: str = field(repr=False)  # may hold a secret
    path: str  # percent-decoded
    options: Mapping[str, str] = field(repr=False)  # the backend's own; as netloc
    text: str = field(repr=False)  # as it was given; as netloc
    common: Mapping[str, str] = field(default_factory=dict)  # options that every backend has
    common_names: tuple[str, ...] = ()  # those that there are

    def __str__(self) -> str:
        return redacted(self.text)

    @classmethod
    def parse(cls, text: str) -> StoreURL:
        """Take a URL, or a bare directory path, apart.

        Raises:
            SettingsError: the text is empty or malformed.
        """
        if not text.strip():
            raise SettingsError(
                "the store's URL is empty; write for example file:///var/lib/states"
            )
        scheme = _SCHEME.match(text)
        if scheme is None:
            path, *query = _BARE_OPTIONS.split(text, maxsplit=1)
            return cls("file", "", _absolute(path), _options("".join(query), text), text)
        if scheme[1] != "memory" and not scheme[2]:  # what follows may hold a secret
            raise SettingsError(
                f"store URL {scheme[0]!r}...: write {scheme[1].lower()}:// before a host or an "
                "absolute path, or ./ before a directory's name"
            )
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise SettingsError(f"store URL {redacted(text)!r}: {error}") from None
        if _reaches_into_path(parts):  # no message may show its pieces
            raise SettingsError(
                f"store URL {redacted(text)!r}: in a password, write %2F for / and %40 for @"
            )
        if parts.fragment:
            raise SettingsError(f"store URL {redacted(text)!r}: in a path, write %23 for #")
        if parts.scheme != "file" and not _is_text(text):  # a directory's name may be any bytes
            raise SettingsError(f"store URL {redacted(text)!r}: it is no UTF-8")
        options = _options(parts.query, text)
        return cls(parts.scheme, parts.netloc, unquote(parts.path), options, text)

    def divided(self, common: Collection[str]) -> StoreURL:
        """With the options named in `common` apart from the backend's own.

        A name that ends in a dot admits every option that begins with it.
        """
        beginnings = tuple(name for name in common if name.endswith("."))
        shared = {
            name: value
            for name, value in self.options.items()
            if name in common or (beginnings and name.startswith(beginnings))
        }
        own = {name: value for name, value in self.options.items() if name not in shared}
        return replace(self, options=own, common=shared, common_names=tuple(common))

    def refuse_options(self, *known: str) -> None:
        """Raise `SettingsError` for an option that is not `known`."""
        unknown = sorted(self.options.keys() - set(known))
        if unknown:
            secret = "@" in self.text and "@" not in self.netloc
            if secret or "@" in unknown[0]:  # what looks like a name may be a password's end
                raise self.error("in a password, write %3F for ? and %2F for /")
            common = [f"{name}NAMESPACE" if name[-1] == "." else name for name in self.common_names]
            names = ", ".join((*common, *known))
            raise SettingsError(
                f"store URL {str(self)!r}: unknown option {unknown[0]!r}; known: {names}"
            )

    def error(self, problem: str) -> SettingsError:
        """A `SettingsError` that names this URL."""
        return SettingsError(f"store URL {str(self)!r}: {problem}")


def _reaches_into_path(parts: SplitResult) -> bool:
    """Whether a password holds a bare slash: its end, and the host, then look like a path."""
    if parts.scheme == "unix" and "@" in parts.netloc:  # a socket's path may have an @
        return False
    return "@" in parts.path and bool(parts.netloc) and parts.scheme != "file"


def _options(query: str, text: str) -> dict[str, str]:
    """The options in the query of the URL `text`."""
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in options:
            raise SettingsError(f"store URL {redacted(text)!r}: {name} is given twice")
        options[name] = value
    return options


def _is_text(given: str) -> bool:
    """Whether it can be sent: the system hands over bytes that are no UTF-8 as lone surrogates."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True


def _absolute(path: str) -> str:
    """A bare path, from the root; `~` is a home directory."""
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:  # nobody of that name
        raise SettingsError(f"store directory {path!r}: {error}") from None
