"""Which states a command is about: one set of options for all commands that take several.

What a backend can look for itself goes to it; the rest is looked at here, entry by entry.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from heapq import merge
from typing import Any

import click

from statestore.cli.render import digits
from statestore.entry import Entry, EntryFilter, Role, Status
from statestore.errors import InputError
from statestore.store import StateStore
from statestore.url import duration_s, size_bytes

Command = Callable[..., Any]

_OPTIONS = (
    click.option("--model", help="Only states of this model name."),
    click.option("--namespace", help="Only this namespace."),
    click.option(
        "--role", type=click.Choice([role.value for role in Role]), help="Only this role."
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Only with this label; may be repeated, then all of them. The first = ends the name; "
        r"\= is one within it, \\ a backslash.",
    ),
    click.option(
        "--key",
        "keys",
        multiple=True,
        metavar="PREFIX",
        help="Only keys that begin so; may be repeated, then any of them.",
    ),
    click.option("--older-than", metavar="AGE", help="Only stored longer ago: 30m, 2h, 7d."),
    click.option("--newer-than", metavar="AGE", help="Only stored since then."),
    click.option("--unused-for", metavar="AGE", help="Only not used since then."),
    click.option("--larger-than", metavar="SIZE", help="Only blobs of more than: 10MiB, 2GB."),
    click.option("--smaller-than", metavar="SIZE", help="Only blobs of less."),
    click.option("--pinned/--unpinned", default=None, help="Only pinned states, or only others."),
    click.option("--quarantined", is_flag=True, help="Only states that are barred from use."),
)


_NAMES = (
    "model",
    "namespace",
    "role",
    "labels",
    "keys",
    "older_than",
    "newer_than",
    "unused_for",
    "larger_than",
    "smaller_than",
    "pinned",
    "quarantined",
)


@dataclass(frozen=True, slots=True)
class Selection:
    """States that were asked for."""

    where: EntryFilter = field(default_factory=EntryFilter)
    labelled: frozenset[str] = frozenset()  # names of labels, whatever they say
    prefixes: tuple[str, ...] = ()  # of keys, in hex; any of them
    text: str = ""  # as it was asked for; empty: everything

    @property
    def namespace_alone(self) -> bool:
        """Whether nothing but a namespace, if that, was asked for."""
        return self == Selection(EntryFilter(namespace=self.where.namespace), text=self.text)

    def entries(self, store: StateStore) -> Iterator[Entry]:
        """The entries, newest use first, as a stream."""
        if len(self.prefixes) < 2:
            where = replace(self.where, key_prefix="".join(self.prefixes) or None)
            listed = store.list(where)
        else:
            several = [store.list(replace(self.where, key_prefix=each)) for each in self.prefixes]
            listed = merge(*several, key=lambda entry: entry.used_at, reverse=True)
        return (entry for entry in listed if self.labelled <= entry.labels.keys())


def selection_options(command: Command) -> Command:
    """Give a command the options, and a `Selection` as ``selection``."""

    @wraps(command)
    def selecting(*arguments: object, **given: Any) -> object:  # noqa: ANN401 - options of any kind
        asked = {name: given.pop(name) for name in _NAMES}
        return command(*arguments, selection=_selection(asked), **given)

    for option in reversed(_OPTIONS):
        selecting = option(selecting)
    return selecting


def require_some(keys: Sequence[str], selection: Selection) -> None:
    """Raise `InputError` unless there are either keys or filters."""
    if bool(keys) == bool(selection.text):
        raise InputError("give keys, or filters, one of the two: --help lists them")


def _selection(asked: Mapping[str, Any]) -> Selection:
    _refuse_empty(asked)
    now = time.time()
    pairs = [_divided(label) for label in asked["labels"]]
    where = EntryFilter(
        namespace=asked["namespace"],
        model=asked["model"],
        role=Role(asked["role"]) if asked["role"] else None,
        status=Status.QUARANTINED if asked["quarantined"] else None,
        pinned=asked["pinned"],
        labels={name: value for name, equals, value in pairs if equals},
        used_before=_ago(asked, "unused_for", now),
        created_before=_ago(asked, "older_than", now),
        created_after=_ago(asked, "newer_than", now),
        at_least_bytes=_bytes(asked, "larger_than", 1),
        at_most_bytes=_bytes(asked, "smaller_than", -1),
    )
    return Selection(
        where,
        frozenset(name for name, equals, _ in pairs if not equals),
        _distinct([digits(key).lower() for key in asked["keys"]]),
        " ".join(_words(asked)),
    )


def _divided(label: str) -> tuple[str, str, str]:
    """Name, ``=`` or nothing, and value of ``NAME[=VALUE]``."""
    match = re.match(r"(?:\\[=\\]|[^=])*", label)
    assert match is not None, "nothing matches too"
    name, rest = match[0], label[match.end() :]
    return re.sub(r"\\([=\\])", r"\1", name), rest[:1], rest[1:]


def _refuse_empty(asked: Mapping[str, Any]) -> None:
    """An empty text is a script's variable that was not set: it must not select everything."""
    for name in ("model", "namespace", "labels", "keys"):
        value = asked[name]
        for text in value if isinstance(value, tuple) else [value]:
            if text is not None and not _divided(text)[0].strip():
                raise InputError(f"{_flag(name).removesuffix('s')}: a value is missing")


def _ago(asked: Mapping[str, Any], name: str, now: float) -> float | None:
    text = asked[name]
    return None if text is None else now - duration_s(text, _flag(name))


def _bytes(asked: Mapping[str, Any], name: str, beyond: int) -> int | None:
    text = asked[name]
    return None if text is None else size_bytes(text, _flag(name)) + beyond


def _distinct(prefixes: list[str]) -> tuple[str, ...]:
    """Without those that begin with another one."""
    found: list[str] = []
    for prefix in sorted(prefixes):
        if not (found and prefix.startswith(found[-1])):
            found.append(prefix)
    return tuple(found)


def _words(asked: Mapping[str, Any]) -> Iterator[str]:
    """The options again, in one order."""
    for name in sorted(asked):
        value = asked[name]
        if name == "pinned" and value is not None:
            yield "--pinned" if value else "--unpinned"
        elif isinstance(value, tuple):
            yield from (f"{_flag(name).removesuffix('s')}={one}" for one in sorted(value))
        elif value:
            yield _flag(name) if value is True else f"{_flag(name)}={value}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
