"""From URLs to built objects. This and `statestore.config` alone read the environment, but for what
makes the codec's kernel.

    file:///var/lib/states                  SQLite catalog + blob files; the embedded default
    file:///var/lib/states?codec=raw        options follow the path
    ./states                                a bare path means the same
    memory:?budget=1GiB                     this process's memory; memory://name is shared in it
    postgresql://user:secret@host/db?blobs=file:///shared/dir    a fleet's catalog and blobs; the
                                            blobs may lie at s3://bucket/prefix as well
    file:///shared/states?keys=/etc/states.keys    encrypted (`keyring`); or keys=env:NAME
    redis://user:secret@host:6379/0         entries and blobs in Redis; also rediss, unix, and
                                            redis+sentinel, redis+cluster (`redis.address`)
    memory: file:///var/lib/states          tiers, nearest first: several URLs with white space
                                            between them; options are those of one tier

The backend's module is loaded when its scheme is first asked for, so that a command which never
opens a database does not pay for its driver. What every backend may have around it, with the
options that say so, is listed in `_WRAPS`. A secret in a URL goes to the driver and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, cast, get_args

from platformdirs import user_data_path

from statestore.backends import ending
from statestore.backends.base import Backend
from statestore.backends.redis.address import OPTIONS, SCHEMES, Address
from statestore.backends.tiers.backend import Tier, Tiered
from statestore.backends.wrappers.budgeted import OPTIONS as BUDGET_OPTIONS
from statestore.backends.wrappers.budgeted import budgeted
from statestore.backends.wrappers.encrypted import OPTIONS as ENCRYPTION_OPTIONS
from statestore.backends.wrappers.encrypted import Encrypted
from statestore.backends.wrappers.guarded import OPTIONS as GUARD_OPTIONS
from statestore.backends.wrappers.guarded import guarded
from statestore.backends.wrappers.late import Late
from statestore.backends.wrappers.recoded import Recoded
from statestore.codec import CodecName
from statestore.codec.auto import AutoCodec
from statestore.errors import SettingsError, StateStoreError
from statestore.keyring import load_keys
from statestore.metrics import Metrics
from statestore.store import StateStore
from statestore.url import StoreURL, places, size_bytes

if TYPE_CHECKING:
    from statestore.backends.sql.revisions import Revisions

#: Names the store that commands use when they are told none.
URL_VARIABLE = "RWKV_STATESTORE_URL"


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
    return cast("Backend", _module("sql.file", url).open_file_backend(_directory(url)))


def _open_memory(url: StoreURL) -> Backend:
    url.refuse_options("budget")
    if url.path:
        raise url.error("a memory store has a name and no path: memory: or memory://name")
    budget = {**url.options, **url.common}.get("budget")
    limit = None if budget is None else size_bytes(budget, f"store URL {str(url)!r}: budget")
    return cast("Backend", _module("memory.backend", url).MemoryBackend(url.netloc, limit))


def _fleet_place(url: StoreURL, module: ModuleType) -> object:
    url.refuse_options(*module.OPTIONS)
    return module.FleetPlace.parse(url.text)


def _open_fleet(url: StoreURL, *, absent_ok: bool = False) -> Backend:
    module = _module("sql.fleet", url, "postgres")
    place = _fleet_place(url, module)
    return cast("Backend", module.open_fleet_backend(place, absent_ok=absent_ok))


def _open_redis(url: StoreURL) -> Backend:
    url.refuse_options(*OPTIONS)
    address = Address.of(url.scheme, url.netloc, url.path, url.options)
    return cast("Backend", _module("redis.backend", url).open_redis_backend(address))


_OPENERS: dict[str, Callable[[StoreURL], Backend]] = {
    "memory": _open_memory,
    "file": _open_file,
    "postgresql": _open_fleet,
    "postgresql+psycopg": _open_fleet,
    **dict.fromkeys(SCHEMES, _open_redis),
}


@dataclass(frozen=True, slots=True)
class Wrap:
    """One concern around every backend, and the options that it reads from `StoreURL.common`."""

    options: tuple[str, ...]  # "budget." admits every option that begins so
    around: Callable[[Backend, StoreURL, Metrics], Backend]


def _encrypted(backend: Backend, url: StoreURL, metrics: Metrics) -> Backend:  # noqa: ARG001
    where = url.common.get("keys")
    return backend if where is None else Encrypted(backend, load_keys(where, os.environ))


#: What is put around a backend that a URL opens, innermost first: one line for each concern. An
#: option that neither a line nor the backend lists is refused.
_WRAPS: Final[tuple[Wrap, ...]] = (
    Wrap(ENCRYPTION_OPTIONS, _encrypted),
    Wrap(BUDGET_OPTIONS, budgeted),
    Wrap(GUARD_OPTIONS, guarded),  # around what else is asked of the place for a put or a touch
)
_COMMON: Final = ("codec", *(name for wrap in _WRAPS for name in wrap.options))


def _file_revisions(url: StoreURL) -> Revisions:
    root = _directory(url)
    _module("sql.file", url).require_store(root)
    return cast("Revisions", _module("sql.revisions", url).of_file(root))


def _fleet_revisions(url: StoreURL) -> Revisions:
    module = _module("sql.fleet", url, "postgres")
    return cast("Revisions", module.open_revisions(_fleet_place(url, module)))


_REVISIONS: dict[str, Callable[[StoreURL], Revisions]] = {
    "file": _file_revisions,
    "postgresql": _fleet_revisions,
    "postgresql+psycopg": _fleet_revisions,
}


def default_url(environ: Mapping[str, str] = os.environ) -> str:
    """The URL in ``RWKV_STATESTORE_URL``, else a directory among the user's application data."""
    return environ.get(URL_VARIABLE) or user_data_path("rwkv-statestore").as_uri()


@dataclass(frozen=True, slots=True)
class _Leave:
    """What may be otherwise than it should when a store is opened: the options of `open_store`."""

    create: bool
    absent_ok: bool
    broken_ok: bool


def open_store(
    url: str,
    *,
    create: bool = True,
    flush_on_sigterm: bool = True,
    absent_ok: bool = False,
    broken_ok: bool = False,
) -> StateStore:
    """Open the store at `url`.

    Args:
        url: see the module.
        create: make a file store that does not exist yet.
        flush_on_sigterm: let a store of several tiers flush before SIGTERM ends the process. Where
            the signal has a handler already, or this is not the main thread, nothing is changed.
        absent_ok: open a store whose database server is down: it is used once it is there.
        broken_ok: open a store that cannot be opened for whatever other reason, be it its disk or
            tables of another release: it is used once it can be. For who knows that the URL is
            right, since one that is not leads nowhere in silence.

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
    metrics = Metrics()
    urls = [parse_place(text) for text in places(url)]
    codecs = [_codec_of(place) for place in urls]
    leave = _Leave(create, absent_ok, broken_ok)
    if len(urls) == 1:
        backend = _open_backend(urls[0], metrics, leave)
        if isinstance(codecs[0], AutoCodec):
            return StateStore(Recoded(backend, codecs[0]), codec_name="raw", metrics=metrics)
        return StateStore(backend, codec_name=codecs[0], metrics=metrics)
    tiers = _open_tiers(urls, codecs, metrics, leave)
    if flush_on_sigterm:
        ending.flush_on_sigterm()
    # Encoded once, without a copy; a tier that wants another codec encodes anew behind the put.
    return StateStore(Tiered(tiers, metrics=metrics), codec_name="raw", metrics=metrics)


def _open_tiers(
    urls: Sequence[StoreURL],
    codecs: Sequence[CodecName | AutoCodec],
    metrics: Metrics,
    leave: _Leave,
) -> list[Tier]:
    with ExitStack() as opened:  # what is open already is closed if a further tier fails
        tiers: list[Tier] = []
        for name, url, codec_name in zip(_tier_names(urls), urls, codecs, strict=True):
            backend = _open_backend(url, metrics, leave)
            opened.callback(backend.close)
            if codec_name != "raw":
                backend = Recoded(backend, codec_name)
            tiers.append(Tier(name, backend, lasting_reads=url.scheme == "memory"))
        opened.pop_all()
    return tiers


def tiers_of(url: str) -> dict[str, str]:
    """The URLs of a store's places by their names in metrics and listings, nearest first."""
    texts = places(url)
    return dict(zip(_tier_names([parse_place(text) for text in texts]), texts, strict=True))


def _tier_names(urls: Sequence[StoreURL]) -> list[str]:
    names: list[str] = []
    for url in urls:
        name = url.scheme.partition("+")[0]
        same = sum(other.rstrip("0123456789") == name for other in names)
        names.append(f"{name}{same + 1}" if same else name)
    return names


#: What other programs call a place that there is, or that there is something in place of.
_MEANT: Final = {
    "postgres": "postgresql://",
    "sqlite": "file:///a/directory, which has an SQLite catalog",
    "mysql": "postgresql://, since no other server's SQL is spoken",
    "mariadb": "postgresql://, since no other server's SQL is spoken",
    "s3": "postgresql://host/database?blobs=s3://bucket/prefix: a bucket has no catalog",
}


def parse_place(text: str) -> StoreURL:
    """One place's URL, its common options apart; nothing is opened.

    Raises:
        SettingsError: it is malformed, or of no scheme that is known.
    """
    url = StoreURL.parse(text)
    if url.scheme not in _OPENERS:
        meant = _MEANT.get(url.scheme.partition("+")[0])
        if meant is not None:
            raise url.error(f"no backend for {url.scheme}://; write {meant}")
        known = ", ".join(f"{scheme}://" for scheme in _OPENERS)  # memory:// is right as well
        raise url.error(f"no backend for {url.scheme}://; known: {known}")
    return url.divided(_COMMON)


def _codec_of(url: StoreURL) -> CodecName | AutoCodec:
    name = url.common.get("codec", "raw" if url.scheme == "memory" else "lossless")
    if name == "auto":
        return AutoCodec()
    if name not in get_args(CodecName):
        raise url.error(f"codec is one of {', '.join(get_args(CodecName))}, auto")
    return cast("CodecName", name)


def _open_backend(url: StoreURL, metrics: Metrics, leave: _Leave) -> Backend:
    """The backend at `url` with all that belongs around it."""
    opening = partial(_open_bare, url, leave)
    try:
        backend = opening()
    except StateStoreError as error:
        if not leave.broken_ok:
            raise
        backend = Late(str(url), opening, error)
    try:
        for wrap in _WRAPS:
            backend = wrap.around(backend, url, metrics)
    except BaseException:
        backend.close()
        raise
    return backend


def _open_bare(url: StoreURL, leave: _Leave) -> Backend:
    if not leave.create and url.scheme == "file":
        _module("sql.file", url).require_store(_directory(url))
    opener = _OPENERS[url.scheme]
    return _open_fleet(url, absent_ok=leave.absent_ok) if opener is _open_fleet else opener(url)


def open_revisions(url: str) -> Revisions:
    """The revision of the catalog at `url`, to look at or to change; it is not upgraded by this.

    Raises:
        SettingsError: the URL means nothing, its store has no SQL catalog, or there is no store.
        UnavailableError: the place cannot be opened, or a file store has lost its catalog.
    """
    place = parse_place(places(url)[-1])  # of tiers, the home's
    if place.scheme not in _REVISIONS:
        raise place.error("it has no SQL catalog to upgrade")
    return _REVISIONS[place.scheme](place)
