"""Who may ask, and in whose namespace: API keys from a file.

    [[keys]]
    sha256 = "9f86d081884c7d65..."     # of the key, in hex; or the key itself: key = "sk-..."
    namespace = "alice"
    salt = "as long as random"         # optional: what alice has read is hers alone to find

A key that is presented is hashed and compared with every key of the file, each in constant time,
whether one has fitted already or not.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rwkv_runtime.server.errors import ApiError
from statestore.errors import InputError, SettingsError
from statestore.keys import Namespace

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_FIELDS = {"key", "sha256", "namespace", "salt"}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key's SHA-256, and whose it is."""

    digest: bytes = field(repr=False)
    namespace: Namespace


class Access:
    """Decides whose request it is.

    Args:
        keys: those that are let in; none lets everybody in, as `default`.
        default: the namespace of requests where there are no keys.
    """

    def __init__(self, keys: tuple[ApiKey, ...], default: Namespace) -> None:
        self.keys = keys
        self.default = default

    def namespace(self, authorization: str | None) -> Namespace:
        """The namespace of a request with this `Authorization` header, decoded as Latin-1.

        Raises:
            ApiError: 401.
        """
        if not self.keys:
            return self.default
        scheme, _, presented = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise ApiError(
                401, "an API key is needed: send 'Authorization: Bearer KEY'", code="no_api_key"
            )
        sent = presented.strip().encode("latin-1")  # the bytes: this is how headers are decoded
        digest = hashlib.sha256(sent).digest()
        found = [key for key in self.keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise ApiError(401, "this API key is not known here", code="invalid_api_key")
        return found[0].namespace


def load_access(
    path: Path | None, default: Namespace, salts: Mapping[str, str] | None = None
) -> Access:
    """What a keys file says; without one everybody is let in.

    Args:
        path: the file.
        default: the namespace of requests where there is none.
        salts: of namespaces whose keys have none beside them.

    Raises:
        SettingsError: it cannot be read, or means nothing; names the entry, never a key.
    """
    if path is None:
        return Access((), default)
    try:
        entries = tomllib.loads(path.read_text("utf-8")).get("keys")
    except OSError as error:
        raise SettingsError(f"API keys file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"API keys file {path}: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"API keys file {path}: {error}") from None
    if not isinstance(entries, list) or not entries:
        raise SettingsError(f"API keys file {path} has no [[keys]]")
    keys = tuple(
        _parsed(entry, salts or {}, f"{path}, key {i}") for i, entry in enumerate(entries, 1)
    )
    _check_together(keys, path)
    return Access(keys, default)


def _parsed(entry: object, salts: Mapping[str, str], place: str) -> ApiKey:
    if not isinstance(entry, dict) or any(not isinstance(value, str) for value in entry.values()):
        raise SettingsError(f"{place}: an entry has texts only: key or sha256, namespace, salt")
    unknown = sorted(entry.keys() - _FIELDS)
    if unknown:
        raise SettingsError(f"{place}: {unknown[0]} is not known; there are: key, sha256, "
                            "namespace, salt")  # fmt: skip
    if ("key" in entry) == ("sha256" in entry):
        raise SettingsError(f"{place}: give one of key and sha256")
    if "namespace" not in entry:
        raise SettingsError(f"{place}: the namespace is missing")
    try:
        name = entry["namespace"]
        namespace = Namespace(name, entry.get("salt", salts.get(name, "")).encode())
    except InputError as error:
        raise SettingsError(f"{place}: {error}") from None
    return ApiKey(_digest(entry, place), namespace)


def _digest(entry: dict[str, str], place: str) -> bytes:
    if "sha256" in entry:
        if not _DIGEST.fullmatch(entry["sha256"]):
            raise SettingsError(f"{place}: sha256 is 64 hex digits: printf %s KEY | sha256sum")
        return bytes.fromhex(entry["sha256"])
    if len(entry["key"]) < 16 or entry["key"] != entry["key"].strip():
        raise SettingsError(f"{place}: a key is 16 characters or more, without spaces around it")
    return hashlib.sha256(entry["key"].encode()).digest()


def _check_together(keys: tuple[ApiKey, ...], path: Path) -> None:
    if len({key.digest for key in keys}) < len(keys):
        raise SettingsError(f"API keys file {path}: a key is there twice")
    salts: dict[str, bytes] = {}
    for key in keys:
        name, salt = key.namespace.name, key.namespace.salt
        if salts.setdefault(name, salt) != salt:  # each would see the names of what others keep
            raise SettingsError(f"API keys file {path}: namespace {name} has two salts")
