"""From URLs and the environment to built objects; the only reader of the environment.

    file:///var/lib/states                  SQLite catalog + blob files; the embedded default
    file:///var/lib/states?codec=raw        options follow the path
    ./states                                a bare path means the same

The backend's module is loaded when its scheme is first asked for, so that a command which never
opens a database does not pay for its driver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import cast, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from platformdirs import user_data_path

from statestore.backends.base import Backend
from statestore.codec import CodecName
from statestore.errors import SettingsError
from statestore.store import StateStore

#: Names the store that commands use when they are told none.
URL_VARIABLE = "RWKV_STATESTORE_URL"


@dataclass(frozen=True, slots=True)
class StoreURL:
    """A store's URL, taken apart."""

    scheme: str
    netloc: str
    path: str  # percent-decoded
    options: Mapping[str, str]
    text: str  # as it was given

    @classmethod
    def parse(cls, text: str) -> StoreURL:
        """Take a URL, or a bare directory path, apart.

        Raises:
            SettingsError: the text is empty, or its scheme is not known.
        """
        if not text.strip():
            raise SettingsError(
                "the store's URL is empty; write for example file:///var/lib/states"
            )
        if "://" not in text:
            return cls("file", "", str(Path(text).expanduser().absolute()), {}, text)
        parts = urlsplit(text)
        if parts.scheme not in _OPENERS:
            known = ", ".join(f"{scheme}://" for scheme in _OPENERS)
            raise SettingsError(
                f"store URL {text!r}: no backend for {parts.scheme}://; known: {known}"
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(parts.scheme, parts.netloc, unquote(parts.path), options, text)


def _open_file(url: StoreURL) -> Backend:
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise SettingsError(
            f"store URL {url.text!r}: a file store needs an absolute path: file:///var/lib/states"
        )
    module = import_module("statestore.backends.file")
    return cast("Backend", module.open_file_backend(Path(url.path)))


_OPENERS: dict[str, Callable[[StoreURL], Backend]] = {"file": _open_file}


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """The URL in ``RWKV_STATESTORE_URL``, else a directory among the user's application data."""
    return environ.get(URL_VARIABLE) or user_data_path("rwkv-statestore").as_uri()


def open_store(url: str) -> StateStore:
    """Open the store at `url`; it is created where it does not exist yet.

    Raises:
        SettingsError: the URL or one of its options means nothing.
        UnavailableError: the place cannot be opened.
        SchemaVersionError: its catalog belongs to another release.

    Example:
        >>> with open_store("file:///tmp/states") as store:  # doctest: +SKIP
        ...     store.usage().entries
        0
    """
    parts = StoreURL.parse(url)
    options = dict(parts.options)
    codec_name = options.pop("codec", "lossless")
    if codec_name not in get_args(CodecName):
        raise SettingsError(f"store URL {url!r}: codec is one of {', '.join(get_args(CodecName))}")
    if options:
        raise SettingsError(f"store URL {url!r}: unknown option {min(options)!r}; known: codec")
    return StateStore(_OPENERS[parts.scheme](parts), codec_name=cast("CodecName", codec_name))
