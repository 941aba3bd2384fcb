"""Secret keys that containers are encrypted with, and where they come from.

A key file is text: a line for each key, 64 hex digits (32 bytes); empty lines and what follows a
``#`` mean nothing. The first key encrypts, all of them decrypt: to change keys put a new one on
top, and remove the old one when what it encrypted has gone. A key is known by its *id*, 8 bytes
made from the key itself: nothing has to be named, and no two files can mean different keys by one
name.

No secret is ever shown: `repr`, messages and ids are without it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from statestore.errors import SettingsError

KEY_BYTES = 32
ID_BYTES = 8
_ID_TAG = b"rwkv-statestore key id 1\0"
_KEY_LINE = re.compile(rf"[0-9a-fA-F]{{{2 * KEY_BYTES}}}")
_VARIABLE = "env:"


@dataclass(frozen=True, slots=True)
class Key:
    """One secret key."""

    secret: bytes = field(repr=False)  # 32 bytes

    @property
    def id(self) -> bytes:
        """8 bytes that tell this key from others and nothing about it."""
        return hashlib.sha256(_ID_TAG + self.secret).digest()[:ID_BYTES]


@dataclass(frozen=True, slots=True)
class Keyring:
    """Keys: the first encrypts, all decrypt. At least one."""

    keys: tuple[Key, ...]

    @property
    def first(self) -> Key:
        """The key that encrypts."""
        return self.keys[0]

    def get(self, key_id: bytes) -> Key | None:
        """The key of this id, or ``None``."""
        return next((key for key in self.keys if key.id == key_id), None)

    def __str__(self) -> str:
        return ", ".join(key.id.hex() for key in self.keys)


def parse_keys(text: str, source: str) -> Keyring:
    """The keys of a key file's text; `source` names it in messages.

    Raises:
        SettingsError: a line is no key, a key is there twice, or there is none.
    """
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        if not _KEY_LINE.fullmatch(content):
            raise SettingsError(f"{source}, line {number}: a key is {2 * KEY_BYTES} hex digits")
        key = Key(bytes.fromhex(content))
        if key in keys:
            raise SettingsError(f"{source}, line {number}: this key is there already")
        keys.append(key)
    if not keys:
        raise SettingsError(
            f"{source} holds no key: put a line of {2 * KEY_BYTES} hex digits there"
        )
    return Keyring(tuple(keys))


def load_keys(where: str, environ: Mapping[str, str]) -> Keyring:
    """Keys from a file, or from the variable ``NAME`` of `environ` for ``env:NAME``.

    Raises:
        SettingsError: there are none to be had there.
    """
    if _KEY_LINE.fullmatch(where):
        raise SettingsError(
            "keys= holds a key itself: put it into a file, and the file's path here"
        )
    if where.startswith(_VARIABLE):
        name = where.removeprefix(_VARIABLE)
        if name not in environ:
            raise SettingsError(f"keys: the environment has no variable {name!r}")
        return parse_keys(environ[name], f"the variable {name}")
    try:
        text = Path(where).expanduser().read_text("ascii")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text of hex digits"
        raise SettingsError(f"key file {where!r} cannot be read: {reason}") from None
    return parse_keys(text, f"key file {where}")


def new_key() -> Key:
    """A random key."""
    return Key(secrets.token_bytes(KEY_BYTES))


def write_key_file(path: Path) -> Key:
    """Make a key file with one new key, which only its owner may read.

    Raises:
        SettingsError: the file is there already, or cannot be made.
    """
    key = new_key()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SettingsError(f"key file {str(path)!r} cannot be made: {error.strerror}") from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(_lines(key))
    return key


def rotate_key_file(path: Path) -> Key:
    """Put a new key on top of a key file, whole or not at all; the older ones still decrypt.

    Raises:
        SettingsError: there is no sound key file, or it cannot be replaced.
    """
    load_keys(str(path), {})
    key = new_key()
    path = path.resolve()
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(_lines(key) + path.read_text("ascii"))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise SettingsError(
            f"key file {str(path)!r} cannot be replaced: {error.strerror}"
        ) from error
    return key


def _lines(key: Key) -> str:
    return f"# rwkv-statestore key {key.id.hex()}\n{key.secret.hex()}\n"
