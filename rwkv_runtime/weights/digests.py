"""The SHA-256 of a weights file, computed once for as long as the file stays as it is.

A record per path lies in the user's cache directory: the file's identity (device, inode, size,
mtime and ctime in ns), its digest, and a digest of the record itself. A record that is damaged,
foreign or out of date is computed again; one that cannot be written is done without. Records appear
by rename, so any number of processes may race.

A file that was changed less than `SETTLED_NS` before it was read is hashed but not remembered:
within one tick of the file system's clock another write would leave the same identity.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

import platformdirs

from rwkv_runtime.errors import WeightsError

SETTLED_NS = 2_000_000_000
BLOCK_BYTES = 8 << 20  # 8 MiB
RECORD_BYTES = 64 << 10  # 64 KiB, far beyond any honest record
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What says that a file is still the one that was read."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """Of the file that lies at `path` now.

        Raises:
            WeightsError: there is none, or something else than a regular file.
        """
        try:
            found = path.stat()
        except OSError as error:
            raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(found.st_mode):
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise WeightsError(f"{path}: expected a weights file, found {kind}")
        return cls(
            path=str(path.resolve()),
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
        )


def weights_digest(
    path: Path,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> tuple[bytes, FileIdentity]:
    """SHA-256 of the file at `path`, and the identity of the file that it belongs to.

    Args:
        path: The file.
        cache_dir: Where records lie; by default the user's cache directory.
        progress: Told (bytes done, bytes in all) while hashing; not called on a hit.
        clock_ns: The time in ns since the epoch.

    Raises:
        WeightsError: the file cannot be read, or changes meanwhile.
    """
    identity = FileIdentity.of(path)
    record = _record_path(path, cache_dir)
    known = _read_record(record, identity)
    if known is not None:
        return known, identity
    started_ns = clock_ns()
    try:
        with path.open("rb", buffering=0) as file:
            digest = _sha256(file, identity.size, progress)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error
    check_unchanged(path, identity)
    if started_ns - identity.ctime_ns > SETTLED_NS:
        with suppress(OSError):  # a cache that cannot be written costs the next start a little time
            _write_record(record, identity, digest)
    return digest, identity


def check_unchanged(path: Path, identity: FileIdentity) -> None:
    """Raise WeightsError unless `path` still leads to the very file that was read."""
    if FileIdentity.of(path) != identity:
        raise WeightsError(f"{path}: the file changed while it was being read; load it again")


def _sha256(file: RawIOBase, size: int, progress: Progress | None) -> bytes:
    digest = hashlib.sha256()
    block = memoryview(bytearray(BLOCK_BYTES))
    done = 0
    while count := file.readinto(block):
        digest.update(block[:count])
        done += count
        if progress is not None:
            progress(done, size)
    return digest.digest()


def _record_path(path: Path, cache_dir: Path | None) -> Path:
    base = cache_dir or Path(platformdirs.user_cache_dir("rwkv-statestore"))
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return base / "digests" / f"{name}.json"


def _read_record(record: Path, identity: FileIdentity) -> bytes | None:
    try:
        with record.open("rb") as file:
            fields = json.loads(file.read(RECORD_BYTES))
        if fields == _fields(identity, bytes.fromhex(fields["sha256"])):
            return bytes.fromhex(fields["sha256"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # absent or damaged: the same to the caller
    return None


def _write_record(record: Path, identity: FileIdentity, digest: bytes) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=record.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(_fields(identity, digest), file)
        Path(temporary).replace(record)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _fields(identity: FileIdentity, digest: bytes) -> dict[str, Any]:
    """The whole record: a flipped bit anywhere disagrees with `check`."""
    fields = asdict(identity) | {"sha256": digest.hex()}
    check = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return fields | {"check": check}
