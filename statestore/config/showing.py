"""Settings as people and scripts see them, without secrets; and a file to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from statestore.config.reading import Config, Origin, keys_of
from statestore.config.sections import SECTIONS, variable
from statestore.url import redacted


@dataclass(frozen=True, slots=True)
class Row:
    """One setting, as it may be shown."""

    section: str
    key: str
    value: object  # for JSON; secrets are ***
    origin: Origin
    variable: str  # of the environment
    help: str

    @property
    def name(self) -> str:
        """``section.key``."""
        return f"{self.section}.{self.key}"


def rows(config: Config) -> Iterator[Row]:
    """Every setting, in the order of the sections."""
    for section in SECTIONS:
        for key, item in keys_of(section).items():
            value = _shown(key, getattr(getattr(config, section), key), item.metadata["secret"])
            origin = config.origin(f"{section}.{key}")
            yield Row(section, key, value, origin, variable(section, key), item.metadata["help"])


def template() -> str:
    """A file with every key at its default, all of them behind ``#``."""
    lines = ["# Settings of statestore and rwkv-runtime. A line counts once its # is away."]
    for section in SECTIONS:
        lines += ["", f"[{section}]"]
        for key, item in keys_of(section).items():
            default: Any = item.default
            if item.default_factory is not MISSING:
                default = item.default_factory()
            lines.append(f"# {item.metadata['help']} ({variable(section, key)})")
            lines.append(f"# {key} = {_toml(default)}")
    return "\n".join(lines) + "\n"


def _shown(key: str, value: object, secret: bool) -> object:
    if secret and isinstance(value, Mapping):
        return dict.fromkeys(value, "***")
    if secret and value:
        return "***"
    if key == "url":
        return redacted(str(value))
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _toml(value: object) -> str:
    if value is None:
        return '""'
    if isinstance(value, Mapping):
        return "{}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)
