"""From URLs and the environment to built objects; the only reader of the environment.

    file:///var/lib/states                  SQLite catalog + blob files; the embedded default
    file:///var/lib/states?codec=raw        options follow the path
    ./states                                a bare path means the same
    postgresql+psycopg://user:secret@host/db?blobs=file:///shared/dir    a fleet's catalog and blobs
    redis://user:secret@host:6379/0         entries and blobs in Redis; also rediss, unix, and
                                            redis+sentinel, redis+cluster (`redis.address`)

The backend's module is loaded when its scheme is first asked for, so that a command which never
opens a database does not pay for its driver. A secret in a URL goes to the driver and nowhere
else: messages show the URL `redacted`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, cast, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

from platformdirs import user_data_path

from statestore.backends.base import Backend
from statestore.backends.redis.address import OPTIONS, SCHEMES, Address
from statestore.codec import CodecName
from statestore.errors import SettingsError
from statestore.store import StateStore

if TYPE_CHECKING:
    from statestore.backends.revisions import Revisions

#: Names the store that commands use when they are told none.
URL_VARIABLE = "RWKV_STATESTORE_URL"

_PASSWORD: Final = re.compile(r"(://[^:/?#@]*):.*@|([?&][a-z_]*password)=[^&]*")


def redacted(url: str) -> str:
    """`url` with ``***`` for its password, for messages."""
    return _PASSWORD.sub(lambda found: f"{found[1]}:***@" if found[1] else f"{found[2]}=***", url)


@dataclass(frozen=True, slots=True)
class StoreURL:
    """A store's URL, taken apart."""

    scheme: str
    netloc: str = field(repr=False)  # may hold a secret
    path: str  # percent-decoded
    options: Mapping[str, str] = field(repr=False)  # as netloc
    text: str = field(repr=False)  # as it was given; as netloc

    def __str__(self) -> str:
        return redacted(self.text)

    def refuse_options(self, *known: str) -> None:
        """Raise `SettingsError` for an option that is not `known`."""
        unknown = sorted(self.options.keys() - set(known))
        if unknown:
            names = ", ".join(("codec", *known))
            raise SettingsError(
                f"store URL {str(self)!r}: unknown option {unknown[0]!r}; known: {names}"
            )

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
            return cls("file", "", _absolute(text), {}, text)
        try:
            parts = urlsplit(text)
        except ValueError as error:
            raise SettingsError(f"store URL {redacted(text)!r}: {error}") from None
        if parts.scheme not in _OPENERS:
            known = ", ".join(f"{scheme}://" for scheme in _OPENERS)
            raise SettingsError(
                f"store URL {redacted(text)!r}: no backend for {parts.scheme}://; known: {known}"
            )
        if parts.fragment:
            raise SettingsError(f"store URL {redacted(text)!r}: in a path, write %23 for #")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        return cls(parts.scheme, parts.netloc, unquote(parts.path), options, text)


def _absolute(path: str) -> str:
    """A bare path, from the root; `~` is a home directory."""
    if path.startswith("file:"):
        raise SettingsError(f"store URL {path!r}: write file:// before an absolute path")
    try:
        return str(Path(path).expanduser().absolute())
    except RuntimeError as error:  # nobody of that name
        raise SettingsError(f"store directory {path!r}: {error}") from None


def _module(name: str, url: StoreURL, extra: str = "") -> ModuleType:
    """The backend module `name`; `extra` is the one that installs its driver."""
    try:
        return import_module(f"statestore.backends.{name}")
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("statestore"):
            raise
        raise SettingsError(
            f"store URL {str(url)!r} needs {error.name}: pip install 'rwkv-statestore[{extra}]'"
        ) from error


def _directory(url: StoreURL) -> Path:
    if url.netloc not in ("", "localhost") or not url.path.startswith("/"):
        raise SettingsError(
            f"store URL {str(url)!r}: a file store needs an absolute path: file:///var/lib/states"
        )
    url.refuse_options()
    if "\0" in url.path:
        raise SettingsError(f"store URL {str(url)!r}: a path holds no zero byte")
    return Path(url.path)


def _open_file(url: StoreURL) -> Backend:
    return cast("Backend", _module("file", url).open_file_backend(_directory(url)))


def _fleet_place(url: StoreURL, module: ModuleType) -> object:
    url.refuse_options(*module.OPTIONS)
    return module.FleetPlace.parse(url.text)


def _open_fleet(url: StoreURL) -> Backend:
    module = _module("fleet", url, "postgres")
    return cast("Backend", module.open_fleet_backend(_fleet_place(url, module)))


def _open_redis(url: StoreURL) -> Backend:
    url.refuse_options(*OPTIONS)
    address = Address.of(url.scheme, url.netloc, url.path, url.options)
    return cast("Backend", _module("redis.backend", url).open_redis_backend(address))


_OPENERS: dict[str, Callable[[StoreURL], Backend]] = {
    "file": _open_file,
    "postgresql+psycopg": _open_fleet,
    **dict.fromkeys(SCHEMES, _open_redis),
}


def _file_revisions(url: StoreURL) -> Revisions:
    return cast("Revisions", _module("revisions", url).of_file(_directory(url)))


def _fleet_revisions(url: StoreURL) -> Revisions:
    module = _module("fleet", url, "postgres")
    return cast("Revisions", module.open_revisions(_fleet_place(url, module)))


_REVISIONS: dict[str, Callable[[StoreURL], Revisions]] = {
    "file": _file_revisions,
    "postgresql+psycopg": _fleet_revisions,
}


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """The URL in ``RWKV_STATESTORE_URL``, else a directory among the user's application data."""
    return environ.get(URL_VARIABLE) or user_data_path("rwkv-statestore").as_uri()


def open_store(url: str, *, create: bool = True) -> StateStore:
    """Open the store at `url`.

    Args:
        url: see the module.
        create: make a file store that does not exist yet.

    Raises:
        SettingsError: the URL or one of its options means nothing; or there is no store, and none
            was to be made.
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
        names = ", ".join(get_args(CodecName))
        raise SettingsError(f"store URL {str(parts)!r}: codec is one of {names}")
    place = replace(parts, options=options)
    if not create and parts.scheme == "file":
        _module("file", place).require_store(_directory(place))
    backend = _OPENERS[parts.scheme](place)
    return StateStore(backend, codec_name=cast("CodecName", codec_name))


def open_revisions(url: str) -> Revisions:
    """The revision of the catalog at `url`, to look at or to change; it is not upgraded by this.

    Raises:
        SettingsError: the URL means nothing, or its store has no SQL catalog.
    """
    parts = StoreURL.parse(url)
    if parts.scheme not in _REVISIONS:
        raise SettingsError(f"store URL {str(parts)!r}: it has no SQL catalog to upgrade")
    options = {name: value for name, value in parts.options.items() if name != "codec"}
    return _REVISIONS[parts.scheme](replace(parts, options=options))
