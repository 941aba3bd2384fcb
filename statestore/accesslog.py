"""An access log: what was asked, as `statestore simulate` replays it. No text, no token ids.

One JSON object a line for each prompt that was read:

    {"time": 1763745000.123,       seconds since the epoch, when the reading began
     "namespace": "default",
     "tokens": 2410,               of the prompt
     "positions": [256, 512, 2410],     chunk ends that stay whatever follows, and the prompt's end;
                                   tokens, ascending
     "keys": ["<32 hex digits>", ...],  one for each position: equal where the prefixes are
     "segments": [512],            those of the positions where a declared segment ends
     "stable": false,              whether the prompt's end, too, stays whatever follows
     "cached": 2304,               tokens whose reading was spared
     "seconds": 0.42}              from token ids to logits

A reader ignores fields that it does not know, and takes missing ones as unknown; only ``time``,
``tokens``, ``positions`` and ``keys`` are always there.

A key is ``SHA-256(salt, prefix digest)``, its first 16 bytes. The salt is random, lies beside the
log (``<log>.salt``, for its owner alone) and in no line: a log may be given away without telling
whoever gets it which texts were read. All processes that append to one log share its salt.

Each line is one ``write`` to a file opened for appending, so many processes may share a log. One
that has reached its limit becomes ``<log>.1``, that one ``<log>.2`` and so on; the oldest goes.
Appending never raises: a full disk costs lines, with a warning.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from statestore.complaints import Complaints
from statestore.errors import SettingsError
from statestore.keys import Plan, Role

log = logging.getLogger(__name__)

LIMIT_BYTES: Final = 64 << 20  # 64 MiB
KEPT: Final = 4  # full logs beside the current one
KEY_BYTES: Final = 16

_SALT_BYTES: Final = 16
_MODE: Final = 0o600
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Access:
    """One prompt that was read; see the module for each field."""

    time_s: float
    namespace: str
    n_tokens: int
    positions: Sequence[int]
    digests: Sequence[bytes]  # prefix digests, one for each position
    segments: Sequence[int]
    stable: bool
    cached_tokens: int
    seconds: float

    @classmethod
    def of(
        cls, prompt: Plan, namespace: str, *, time_s: float, cached_tokens: int, seconds: float
    ) -> Self:
        """A prompt's line: its chunk ends that stay whatever follows, and its end."""
        ends = [key for key in prompt.stable_behind(0) if key.n_tokens < prompt.n_tokens]
        ends.append(prompt.keys[-1])
        return cls(
            time_s=time_s,
            namespace=namespace,
            n_tokens=prompt.n_tokens,
            positions=[key.n_tokens for key in ends],
            digests=[key.digest for key in ends],
            segments=[b.position for b in prompt.boundaries if b.role is Role.SEGMENT],
            stable=prompt.boundaries[-1].stable,
            cached_tokens=cached_tokens,
            seconds=seconds,
        )


class AccessLog:
    """Appends to one file. Safe to use from several threads and processes, and across a fork.

    Args:
        path: the current log.
        limit_bytes: size at which it is put aside.
        kept: how many of those that were put aside stay.

    Raises:
        SettingsError: no file can be made there.
    """

    def __init__(self, path: Path, *, limit_bytes: int = LIMIT_BYTES, kept: int = KEPT) -> None:
        self.path = path
        self._limit_bytes = limit_bytes
        self._kept = kept
        self._torn = False  # the last line; the next one ends it
        self._complaints = Complaints(log)
        self._salt_path = path.with_name(f"{path.name}.salt")
        try:
            self._salt = _salt_at(self._salt_path)
            os.close(os.open(path, _APPEND, _MODE))
        except OSError as error:
            raise SettingsError(
                f"access log {path}: {error.strerror}; name a file in a directory that exists and "
                "may be written"
            ) from error

    def append(self, access: Access) -> bool:
        """Write a line; ``False``: it is lost, with a warning."""
        line = b"\n" * self._torn + self._line(access)
        try:
            file = os.open(self.path, _APPEND, _MODE)
            try:
                written = os.write(file, line)
                self._torn = written < len(line)  # the disk is full
                size = os.fstat(file).st_size
            finally:
                os.close(file)
            if size >= self._limit_bytes:
                self._put_aside()
        except OSError as error:
            self._complaints.add("append", "access log %s lost a line: %s", self.path, error)
            return False
        return not self._torn

    def _line(self, access: Access) -> bytes:
        fields = {
            "time": round(access.time_s, 3),
            "namespace": access.namespace,
            "tokens": access.n_tokens,
            "positions": list(access.positions),
            "keys": [self._key(digest) for digest in access.digests],
            "segments": list(access.segments),
            "stable": access.stable,
            "cached": access.cached_tokens,
            "seconds": round(access.seconds, 6),
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    def _key(self, digest: bytes) -> str:
        return hashlib.sha256(self._salt + digest).digest()[:KEY_BYTES].hex()

    def _put_aside(self) -> None:
        """Begin a new log, unless another process is at it or has done it."""
        lock = os.open(self._salt_path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.exists() or self.path.stat().st_size < self._limit_bytes:
                return
            for number in range(self._kept, 1, -1):
                older, newer = self._aside(number), self._aside(number - 1)
                if newer.exists():
                    newer.replace(older)
            if self._kept:
                self.path.replace(self._aside(1))
            else:
                self.path.unlink()
        finally:
            os.close(lock)

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")


def _salt_at(path: Path) -> bytes:
    """The salt in the file at `path`, which is made if it is not there; whole or not at all."""
    with suppress(FileNotFoundError):
        return _whole(path)
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, _MODE)
    try:
        os.write(file, os.urandom(_SALT_BYTES))
    finally:
        os.close(file)
    with suppress(FileExistsError):  # of several that begin at once, one salt stands
        os.link(new, path)
    new.unlink()
    return _whole(path)


def _whole(path: Path) -> bytes:
    salt = path.read_bytes()
    if len(salt) != _SALT_BYTES:
        raise SettingsError(f"{path} is no access log's salt: {_SALT_BYTES} bytes are; remove it")
    return salt
