"""Blobs as files: ``root/ab/abcdef...``, the directory being the name's first two characters.

A put writes ``<name>.part`` beside its target, fsyncs it, renames it and fsyncs the directory:
under its own name a blob is whole and durable, or absent. What an interrupted put leaves is a
``.part`` file, listed like any blob. One level of 256 directories carries millions of states of
megabytes; a second level would cost two more fsyncs on nearly every put and a far slower listing.

Blobs are read, not mapped. A mapping would be faster (1 ms against 8 ms for 34.6 MB in the page
cache), but a bad sector, a truncation from outside or a delete on another host of a shared
directory would then kill the process with SIGBUS, where a read ends in an error or in a short
blob: a miss.

What is wrong with one file (a bad sector, a directory or a pipe under a blob's name) is that blob's
damage, a `CorruptError`, and not a failure of the place: the blob can be put aside and made again.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final, TypeAlias

from statestore import buffers
from statestore.blobs.base import NAME, BlobInfo, NotCachedError
from statestore.errors import (
    BackendError,
    CorruptError,
    FullError,
    InputError,
    UnavailableError,
)

PART: Final = ".part"  # suffix of a file that is being written

#: Without waiting for the other end, should a pipe lie there.
_TO_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

_AT_ONCE: Final = 1024  # buffers of one call; the system's limit

_PART_NAME: Final = re.compile(NAME.pattern + re.escape(PART))
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_GONE: Final = frozenset({errno.ENOENT, errno.ESTALE})  # the latter over NFS: by another host
_BAD_FILE: Final = frozenset(  # of one file, while those beside it may be well
    {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.EISDIR, errno.ELOOP, errno.ENXIO}
)


_Descriptors: TypeAlias = list[int]

#: Reads from a descriptor's beginning into so much memory; how many bytes there were.
_ReadV: TypeAlias = Callable[[int, memoryview, int], int]


def storage_error(error: OSError, what: str) -> BackendError:
    """The storage layer's error for `error`, met while doing `what` (``"writing /path"``)."""
    if error.errno in _FULL:
        return FullError(f"no space left {what} ({error.strerror}): free some, or lower the budget")
    if error.errno == errno.EROFS:
        return UnavailableError(f"{error.strerror} {what}: mount it for writing")
    if isinstance(error, PermissionError):
        who = f"user id {os.geteuid()}"
        return UnavailableError(f"{error.strerror} {what}: give {who} the right to write there")
    return UnavailableError(f"{error.strerror or error} {what}")


class FilesystemBlobs:
    """A `BlobStore` in the directory `root`, which exists."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)

    def put(self, name: str, blob: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write the buffers under `name`; durable when this returns.

        Raises:
            InputError: the name is unlawful.
            FullError: the disk, a quota or a file size limit is exhausted; nothing is left behind.
            UnavailableError: any other failure of the file system; nothing is left behind.
        """
        if name.endswith(PART):
            raise InputError(f"blob name {name!r}: names that end in {PART} are kept for writing")
        path = self._path(name)
        part = path + PART
        # Opened and closed in one step of the interpreter each, as everywhere here: wherever a
        # Ctrl-C comes, no descriptor is lost, and what was made is known to have been.
        opened: _Descriptors = []
        closing = map(os.close, opened)
        with _translating(f"writing {path}"):
            try:
                self._create(part, opened)
                _write(opened[0], blob)
                list(closing)
                os.rename(part, path)  # noqa: PTH104 - strings, as everywhere on this path
                _sync_directory(os.path.dirname(path))  # noqa: PTH120
            except BaseException:
                for left in (part, path) if opened else ():  # else another one's is in the way
                    with suppress(OSError):
                        os.unlink(left)  # noqa: PTH108
                raise
            finally:
                list(closing)

    def get(self, name: str, *, limit_bytes: int | None = None) -> memoryview | None:
        """The blob (its first `limit_bytes`) in fresh memory, writable and aligned, or ``None``.

        Raises:
            CorruptError: what lies there is no file, or cannot be read back.
            UnavailableError: any other failure of the file system.
        """
        return self._got(name, limit_bytes, _readv)

    def get_cached(self, name: str, *, limit_bytes: int | None = None) -> memoryview | None:
        """As `get`, if the system has all of it in memory: no disk is waited for.

        Raises `NotCachedError` where it has not, or cannot tell. Opening the file is not bounded.
        """
        return self._got(name, limit_bytes, _readv_cached)

    def _got(self, name: str, limit_bytes: int | None, readv: _ReadV) -> memoryview | None:
        path = self._path(name)
        try:
            return _read(path, limit_bytes, readv)
        except OSError as error:
            if error.errno in _GONE:
                self._require_root()
                return None
            if error.errno in _BAD_FILE:
                raise CorruptError(f"{path} cannot be read: {error.strerror}") from error
            raise storage_error(error, f"reading {path}") from error

    def size(self, name: str) -> int | None:
        """Size in bytes, or ``None``."""
        path = self._path(name)
        with _translating(f"looking at {path}"):
            try:
                return os.stat(path).st_size  # noqa: PTH116
            except FileNotFoundError:
                self._require_root()
                return None

    def delete(self, name: str) -> bool:
        """Remove the blob; ``False`` where it was gone already."""
        path = self._path(name)
        with _translating(f"removing {path}"):
            try:
                os.unlink(path)  # noqa: PTH108
            except FileNotFoundError:
                self._require_root()
                return False
            return True

    def list(self) -> Iterator[BlobInfo]:
        """Every blob and every ``.part`` file, in no order. Files of other names are left out."""
        with _translating(f"listing {self._root}"), os.scandir(self._root) as found:
            directories = [entry.path for entry in found if len(entry.name) == 2]
        for directory in directories:
            with _translating(f"listing {directory}"):
                blobs = _list_directory(directory)
            yield from blobs

    def _path(self, name: str) -> str:
        if not (NAME.fullmatch(name) or _PART_NAME.fullmatch(name)):
            raise InputError(f"blob name {name!r} is unlawful: it must match {NAME.pattern}")
        return f"{self._root}/{name[:2]}/{name}"

    def _create(self, part: str, opened: _Descriptors) -> None:
        """Open `part` for writing, into `opened`; its directory is made at the first blob there."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            opened.extend(map(os.open, (part,), (flags,), (0o600,)))
        except FileNotFoundError:
            self._require_root()
            with suppress(FileExistsError):
                os.mkdir(os.path.dirname(part), 0o700)  # noqa: PTH102, PTH120
            _sync_directory(self._root)
            opened.extend(map(os.open, (part,), (flags,), (0o600,)))

    def _require_root(self) -> None:
        """A file system that is not mounted has no blobs, but that is no miss."""
        if not os.path.isdir(self._root):  # noqa: PTH112
            raise UnavailableError(f"{self._root} has gone: is its file system mounted?")


@contextmanager
def _translating(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error


def _readv(descriptor: int, buffer: memoryview, size: int) -> int:
    """Fill `buffer`, of `size` bytes, as far as the file goes."""
    filled = os.readv(descriptor, [buffer])
    while filled < size and (count := os.readv(descriptor, [buffer[filled:]])):
        filled += count
    return filled


def _readv_cached(descriptor: int, buffer: memoryview, size: int) -> int:
    """As `_readv`, from memory: all at once, or not at all."""
    try:
        filled = os.preadv(descriptor, [buffer], 0, os.RWF_NOWAIT)
    except (AttributeError, OSError) as error:  # the former: a system that knows no such reading
        raise NotCachedError from error
    if filled < size:
        raise NotCachedError
    return filled


def _read(path: str, limit_bytes: int | None, readv: _ReadV) -> memoryview:
    """The file's first bytes. In the way of each request: as few steps as may be."""
    # Opened and closed in one step of the interpreter each: wherever a Ctrl-C comes, none is lost.
    opened: list[int] = []
    closing = map(os.close, opened)
    try:
        opened.extend(map(os.open, (path,), (_TO_READ,)))
        descriptor = opened[0]
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ENXIO, "no regular file")
        size = status.st_size
        if limit_bytes is not None and limit_bytes < size:
            size = limit_bytes
        buffer = buffers.take(size)
        filled = readv(descriptor, buffer, size)
        return buffer if filled == size else buffer[:filled]
    finally:
        list(closing)


def _write(descriptor: int, blob: Sequence[bytes | bytearray | memoryview]) -> None:
    """Write all buffers, and fsync."""
    views = [memoryview(buffer) for buffer in blob]
    rest = deque(view.cast("B") for view in views if view.nbytes)
    while rest:
        # In one call: the system keeps such a file in larger pieces of memory than one that came
        # bit by bit, and reads it from there in two thirds of the time.
        count = os.writev(descriptor, list(islice(rest, _AT_ONCE)))
        if count == 0:  # as some file systems do in place of an error; again, and for ever
            raise OSError(errno.EIO, "the file system took nothing")
        while rest and len(rest[0]) <= count:
            count -= len(rest.popleft())
        if count:
            rest[0] = rest[0][count:]
    os.fsync(descriptor)


def _sync_directory(path: str) -> None:
    opened: list[int] = []
    closing = map(os.close, opened)
    try:
        opened.extend(map(os.open, (path,), (os.O_RDONLY | os.O_DIRECTORY,)))
        os.fsync(opened[0])
    finally:
        list(closing)


def _list_directory(directory: str) -> list[BlobInfo]:
    """The lawful names in one directory. What vanishes meanwhile is left out."""
    blobs = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as found:
        for entry in found:
            if not (NAME.fullmatch(entry.name) or _PART_NAME.fullmatch(entry.name)):
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                blobs.append(BlobInfo(entry.name, status.st_size, status.st_mtime))
    return blobs
