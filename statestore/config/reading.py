"""The file, the environment and flags, read in that order: the later ones win."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from platformdirs import user_config_path

from statestore.config import kinds
from statestore.config.sections import (
    PREFIXES,
    SECTIONS,
    RuntimeSettings,
    ServerSettings,
    StoreSettings,
    variable,
)
from statestore.errors import SettingsError
from statestore.url import places

#: Names the file, where no --config does.
FILE_VARIABLE: Final = "RWKV_STATESTORE_CONFIG"
#: Read where the codec's kernel is (`statestore.codec.kernel`): it is a process's, no store's.
KERNEL_VARIABLE: Final = "RWKV_STATESTORE_KERNEL"

_ABSOLUTE: Final = re.compile(r"memory:|[A-Za-z][A-Za-z0-9+.-]*://|[/~]")
_MAX_FILE_BYTES: Final = 1 << 20  # 1 MiB


class Source(StrEnum):
    """What a value came from; a later one wins."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where exactly a value came from."""

    source: Source = Source.DEFAULT
    detail: str = ""  # "/etc/states.toml, line 3", "RWKV_SERVER_PORT", "--store"

    def __str__(self) -> str:
        return self.detail or self.source.value


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, and where each came from."""

    store: StoreSettings = field(default_factory=StoreSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    server: ServerSettings = field(default_factory=ServerSettings)
    origins: Mapping[str, Origin] = field(default_factory=dict)  # by "section.key"; else default
    file: Path | None = None  # that was read
    strays: tuple[str, ...] = ()  # variables that look like settings and are none

    def origin(self, name: str) -> Origin:
        """Where the setting ``"section.key"`` came from."""
        return self.origins.get(name, Origin())

    def given(self, section: str) -> dict[str, Any]:
        """The values of `section` that are not defaults, by key."""
        values = getattr(self, section)
        return {
            item.name: getattr(values, item.name)
            for item in fields(values)
            if f"{section}.{item.name}" in self.origins
        }


def load(
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """Read all settings.

    Args:
        file: the TOML file; else ``$RWKV_STATESTORE_CONFIG``, else `default_file` if it is there.
        environ: variables such as ``RWKV_SERVER_PORT``; empty ones count as absent,
            in the file too.
        flags: by ``"section.key"``, what a command line gave; ``None`` counts as absent.

    Raises:
        SettingsError: the file cannot be read, a key is unknown, or a value is not of its kind;
            names the place and the remedy.
    """
    found = _chosen_file(file, environ)
    given: dict[str, tuple[object, Origin]] = {}
    if found is not None:
        given |= _of_file(found)
    given |= _of_environ(environ)
    for name, value in (flags or {}).items():
        if value is not None:
            given[name] = value, Origin(Source.FLAG, flag(name))
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, (value, origin) in given.items():
        section, _, key = name.partition(".")
        values[section][key] = _parsed(section, key, value, origin)
    built: dict[str, Any] = {name: cls(**values[name]) for name, cls in SECTIONS.items()}
    origins = {name: origin for name, (_, origin) in given.items()}
    return Config(**built, origins=origins, file=found, strays=_strays(environ))


def flag(name: str) -> str:
    """The option that sets ``"section.key"``."""
    return "--store" if name == "store.url" else f"--{name.partition('.')[2].replace('_', '-')}"


def default_file() -> Path:
    """The file that is read where none is named: among the user's settings.

    Never one in the working directory: whoever may write there would say where states go.
    """
    return user_config_path("rwkv-statestore") / "config.toml"


def keys_of(section: str) -> dict[str, Field[Any]]:
    """The keys of a section, by name."""
    return {item.name: item for item in fields(SECTIONS[section])}


def _chosen_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    if file is not None:
        return file
    if named := environ.get(FILE_VARIABLE):
        return _parsed_path(named)
    path = default_file()
    try:
        return path if path.is_file() else None
    except OSError as error:  # another user's home, as sudo leaves it: what it says is not known
        raise SettingsError(
            f"settings file {path}: {error.strerror}; name another by --config or "
            f"{FILE_VARIABLE}, or set HOME"
        ) from None


def _parsed_path(named: str) -> Path:
    try:
        return kinds.path(named)
    except ValueError as error:
        raise SettingsError(f"{FILE_VARIABLE}: {named!r} is not {error}") from None


def _of_file(file: Path) -> dict[str, tuple[object, Origin]]:
    text = _text_of(file)
    try:
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is no TOMLDecodeError
        raise SettingsError(f"{file}: not TOML: {error}") from None
    given: dict[str, tuple[object, Origin]] = {}
    for section, table in tables.items():
        if section not in SECTIONS:
            raise _unknown(_place(file, text, section), f"table [{section}]", section, SECTIONS)
        if not isinstance(table, dict):
            raise SettingsError(f"{_place(file, text, section)}: write [{section}] as a table")
        for key, value in table.items():
            place = _place(file, text, section, key)
            if key not in keys_of(section):
                raise _unknown(place, f"[{section}] {key}", key, keys_of(section))
            if value != "":  # as in the environment
                given[f"{section}.{key}"] = (
                    _from(file, value, section, key),
                    Origin(Source.FILE, place),
                )
    return given


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
        if len(content) > _MAX_FILE_BYTES:
            raise SettingsError(f"{file}: larger than 1 MiB: no file of settings")
        return content.decode()
    except OSError as error:
        raise SettingsError(f"the settings in {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file}: byte {error.start} is not UTF-8") from None


def _from(file: Path, value: object, section: str, key: str) -> object:
    """`value`, its relative paths counted from the file's directory."""
    base = file.absolute().parent
    kind = keys_of(section)[key].metadata["kind"]
    if kind is kinds.path and isinstance(value, str) and value.strip():
        return value if value.startswith("~") else base / value
    if (section, key) == ("store", "url") and isinstance(value, str):
        return " ".join(
            place if _ABSOLUTE.match(place) else f"{base}/{place}" for place in places(value)
        )
    return value


def _of_environ(environ: Mapping[str, str]) -> dict[str, tuple[object, Origin]]:
    given: dict[str, tuple[object, Origin]] = {}
    for section in SECTIONS:
        for key in keys_of(section):
            name = variable(section, key)
            if value := environ.get(name):
                given[f"{section}.{key}"] = value, Origin(Source.ENVIRONMENT, name)
    return given


def _parsed(section: str, key: str, value: object, origin: Origin) -> object:
    metadata = keys_of(section)[key].metadata
    try:
        return metadata["kind"](value)
    except ValueError as error:
        shown = "" if metadata["secret"] or key == "url" else f", not {value!r}"
        raise SettingsError(f"{origin}: [{section}] {key} is {error}{shown}") from None


def _unknown(place: str, what: str, name: str, known: Iterable[str]) -> SettingsError:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return SettingsError(f"{place}: {what} is no setting; {meant}")


def _place(file: Path, text: str, section: str, key: str = "") -> str:
    """The file and the line of a table or of a key in it; tomllib does not tell."""
    table = ""
    head = re.compile(r"\s*\[+\s*([^\[\]]+?)\s*\]")
    for number, line in enumerate(text.splitlines(), 1):
        if header := head.match(line):
            table = header[1].replace(" ", "").replace('"', "")
            name = table
        else:
            name = ".".join(filter(None, (table, line.partition("=")[0]))) if "=" in line else ""
        name = re.sub(r"[\s\"']", "", name)
        wanted = f"{section}.{key}" if key else section
        if name == wanted or name.startswith(f"{wanted}."):
            return f"{file}, line {number}"
    return str(file)


def _strays(environ: Mapping[str, str]) -> tuple[str, ...]:
    known = {
        FILE_VARIABLE,
        KERNEL_VARIABLE,
        *(variable(s, key) for s in SECTIONS for key in keys_of(s)),
    }
    prefixes = tuple(PREFIXES.values())
    return tuple(sorted(n for n in environ if n.startswith(prefixes) and n not in known))
