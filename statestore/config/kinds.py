"""The kinds of values that settings have: from TOML's own types, or from a text of the environment,
to what the program uses.

Each kind is a function that returns the value or raises `ValueError`, whose text says what was
wanted: "a number from 1 to 65535".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from statestore.errors import SettingsError
from statestore.url import duration_s, size_bytes

Kind: TypeAlias = Callable[[object], object]

#: As `statestore.keys.namespace` has it, whose package loads numpy; a command's help shall not.
NAMESPACE: Final = re.compile(r"[a-zA-Z0-9._-]{1,64}")

_MOST: Final = 1 << 63
_DIGITS: Final = re.compile(r"[0-9]{1,18}")
_TRUTHS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def text(value: object) -> str:
    """A text that is not empty."""
    if isinstance(value, str) and value.strip():
        return value
    raise ValueError("a text that is not empty")


def path(value: object) -> Path:
    """A path; ``~`` is the home directory."""
    if isinstance(value, Path) or (isinstance(value, str) and value.strip()):
        try:
            return Path(value).expanduser()
        except RuntimeError:  # nobody of that name
            raise ValueError("a path below a home directory that exists") from None
    raise ValueError("a path")


def namespace(value: object) -> str:
    """A namespace's name."""
    if isinstance(value, str) and NAMESPACE.fullmatch(value):
        return value
    raise ValueError("1 to 64 of letters, digits, '.', '_' and '-'")


def truth(value: object) -> bool:
    """``true`` or ``false``; in the environment also 1, 0, yes, no, on, off."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise ValueError("true or false")


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number of `least` and more, up to `most`."""

    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
        if type(number) is int and number >= least and (most is None or number <= most):
            return number
        bounds = f"of {least} and more" if most is None else f"from {least} to {most}"
        raise ValueError(f"a whole number {bounds}")

    return parse


def choice(*names: str) -> Kind:
    """One of a few words."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        raise ValueError(f"one of {', '.join(names)}")

    return parse


def size(value: object) -> int:
    """Bytes: a number, or a text such as ``"64MiB"``."""
    return int(_amount(value, size_bytes, "a size such as 64MiB or 4096"))


def duration(value: object) -> float:
    """Seconds: a number, or a text such as ``"30s"``."""
    return float(_amount(value, duration_s, "a time such as 30s, 5m or 7d"))


def texts(value: object) -> tuple[str, ...]:
    """A list of texts; in the environment, with commas between them."""
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if isinstance(items, list | tuple) and all(isinstance(item, str) and item for item in items):
        return tuple(items)
    raise ValueError("a list of texts")


def salts(value: object) -> Mapping[str, str]:
    """A table from namespaces to their salts; in the environment, ``name=salt,name=salt``. No salt
    is in the error.
    """
    if isinstance(value, str):
        value = dict(pair.partition("=")[::2] for pair in value.split(","))
    if isinstance(value, Mapping) and all(
        isinstance(name, str) and NAMESPACE.fullmatch(name) and isinstance(salt, str) and salt
        for name, salt in value.items()
    ):
        return dict(value)
    raise ValueError("a table of namespaces and their salts, which are texts")


def _amount(value: object, read: Callable[[str, str], float], wanted: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MOST:
        return value
    if isinstance(value, str):
        try:
            return read(value, "")
        except SettingsError:
            raise ValueError(wanted) from None
    raise ValueError(wanted)
