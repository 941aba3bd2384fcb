"""The same bytes written to and read from the same disk or server without a store: a yardstick."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from statestore.cli.premises import Premises
from statestore.errors import UnavailableError

_EXPIRY_S: Final = 120  # of what a killed command leaves in Redis


class Plain(Protocol):
    """A place for one piece of bytes. Raises `UnavailableError`."""

    @property
    def verbs(self) -> tuple[str, str]:
        """What writing and reading are called there."""

    def write(self, content: bytes) -> float:
        """The seconds it took."""

    def read(self) -> float:
        """The seconds it took to read what was written last."""

    def close(self) -> None:
        """Remove it."""


def plain_place(place: Premises) -> Plain | None:
    """That of a disk or of Redis; ``None`` where there is none to compare with."""
    if place.directory is not None:
        return Disk(place.directory)
    return None if place.address is None else Redis(place)


class Disk:
    """A file without a name in a directory, synced before it counts as written. It goes with the
    process, whatever ends that.
    """

    verbs = ("a plain write with fsync", "a plain read")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: BinaryIO | None = None

    def write(self, content: bytes) -> float:
        """Create, write, sync."""
        self.close()
        begun = time.perf_counter()
        try:
            self._file = nameless(self._directory)
            view = memoryview(content)
            while view:
                view = view[self._file.write(view) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UnavailableError(f"{self._directory}: {error.strerror}") from error
        return time.perf_counter() - begun

    def read(self) -> float:
        """Read it whole, from the page cache."""
        assert self._file is not None, "written first"
        self._file.seek(0)
        begun = time.perf_counter()
        try:
            self._file.read()
        except OSError as error:
            raise UnavailableError(f"{self._directory}: {error.strerror}") from error
        return time.perf_counter() - begun

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()


def nameless(directory: Path) -> BinaryIO:
    """An empty, unbuffered file that nobody else sees. Raises ``OSError``."""
    file: BinaryIO = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - the caller does
    return file


class Redis:
    """One string on the server."""

    verbs = ("a plain SET", "a plain GET")

    def __init__(self, place: Premises) -> None:
        from redis.exceptions import RedisError

        self._failures = (RedisError, OSError)
        self._place = str(place.url)
        self._client = redis_client(place)
        assert place.address is not None, "asked of Redis only"
        # where the store's user may write; no sweep looks there
        self._key = f"{place.address.prefix}:bench:{secrets.token_hex(8)}"

    def write(self, content: bytes) -> float:
        """SET."""
        begun = time.perf_counter()
        self._ask("SET", self._key, content, "EX", _EXPIRY_S)
        return time.perf_counter() - begun

    def read(self) -> float:
        """GET."""
        begun = time.perf_counter()
        self._ask("GET", self._key)
        return time.perf_counter() - begun

    def close(self) -> None:
        """Remove the string."""
        with suppress(UnavailableError):
            self._ask("DEL", self._key)
        self._client.close()

    def _ask(self, *words: object) -> object:
        try:
            reply: object = self._client.execute_command(*words)
        except self._failures as error:
            raise UnavailableError(f"{self._place}: {error}") from error
        return reply


def redis_client(place: Premises) -> Any:  # noqa: ANN401 - redis-py's clients share no type
    """A client of the driver's own, for the server at `place`."""
    from statestore.backends.redis.connect import new_client

    assert place.address is not None, "asked of Redis only"
    return new_client(place.address)
