"""Blobs as objects of an object store: S3, or whatever else `obstore` opens.

An object's name is the blob's. A put is one request, or a multipart upload that is aborted when it
fails: under its name a blob is whole, or absent. What a killed process leaves of a multipart upload
shows in no listing; the bucket's lifecycle rule removes it.

A blob beyond `RANGED_BYTES` is read in `LANES` ranges at once, because S3 gives one connection
about 90 MB/s. A server that knows no ranges is asked for the whole.

`obstore` keeps threads that a forked child does not have, and its calls would wait for them for
ever: a child of a process that has used it gets an `UnavailableError`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from statestore.blobs.base import NAME, BlobInfo
from statestore.buffers import take
from statestore.codec.parallel import for_each
from statestore.errors import (
    BackendError,
    CorruptError,
    FullError,
    InputError,
    StateStoreError,
    UnavailableError,
)

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ObjectStore

RANGED_BYTES: Final = 16 << 20  # 16 MiB; what is longer is read in ranges
LANES: Final = 4
WHOLE_BYTES: Final = 16 << 20  # 16 MiB; what is longer is uploaded in parts
PART_BYTES: Final = 8 << 20  # 8 MiB
_CHUNK_BYTES: Final = 1 << 18  # 256 KiB; of a response, per step of the interpreter
_LISTED: Final = 1000  # objects per page, S3's own limit

_CODE: Final = re.compile(r"<Code>(\w+)</Code>|\(code: (\w+)\)")
_MESSAGE: Final = re.compile(r"<Message>([^<]{1,300})</Message>")
_SILENT: Final = "no answer in time"
_STATUS: Final = re.compile(r"status code: (\d{3})")
_FULL: Final = frozenset(
    {
        "InsufficientStorage",
        "QuotaExceeded",
        "ServiceQuotaExceededException",
        "XMinioAdminBucketQuotaExceeded",
        "XMinioStorageFull",
    }
)
_BAD_OBJECT: Final = frozenset({"InvalidObjectState"})  # archived: this one, not those beside it

_FIRST_USER: dict[str, int] = {}  # "pid" -> the process whose threads obstore has


class ObjectBlobs:
    """A `BlobStore` in `store`.

    Args:
        store: one of obstore's, its timeouts set: they bound every call.
        shown: names the place in messages, without secrets.
        renew: the store anew, with connections of its own: asked for after a silence, which others
            of the old one's may share (a firewall that has forgotten them all, a moved server).
    """

    def __init__(
        self, store: ObjectStore, shown: str, renew: Callable[[], ObjectStore] | None = None
    ) -> None:
        self._store = store
        self._shown = shown
        self._renew = renew

    def require(self) -> None:
        """Ask once: the bucket is there, and what is not stored may be asked for.

        Raises:
            UnavailableError: it is not; the message says what the server said.
        """
        self.get("00")

    def put(self, name: str, blob: Sequence[bytes | bytearray | memoryview]) -> None:
        """Write the buffers under `name`; durable when this returns.

        Raises:
            InputError: the name is unlawful.
            FullError: a quota or the server's space is exhausted.
            UnavailableError: any other failure. Whether the blob came to be is not known then.
        """
        buffers = [memoryview(buffer).cast("B") for buffer in blob if memoryview(buffer).nbytes]
        large = sum(buffer.nbytes for buffer in buffers) > WHOLE_BYTES
        with self._translating("writing", name):
            self._store.put(
                name,
                buffers,
                use_multipart=large,
                chunk_size=PART_BYTES,
                max_concurrency=LANES,
            )

    def get(self, name: str, *, limit_bytes: int | None = None) -> memoryview | None:
        """The blob (its first `limit_bytes`) in fresh memory, writable and aligned, or ``None``.

        Raises:
            CorruptError: the server has it, but will not give it (an archived object).
            UnavailableError: any other failure.
        """
        from obstore.exceptions import BaseError

        with self._translating("reading", name):
            try:
                if limit_bytes is not None and limit_bytes > RANGED_BYTES:
                    return self._in_ranges(name, limit_bytes)
                return self._whole(name, limit_bytes)
            except FileNotFoundError as error:
                self._require_bucket(error)
                return None
            except BaseError as error:
                if _said(error)[0] == "NoSuchKey":  # removed meanwhile, told under another status
                    return None
                raise

    def size(self, name: str) -> int | None:
        """Size in bytes, or ``None``."""
        with self._translating("looking at", name):
            try:
                return self._store.head(name)["size"]
            except FileNotFoundError:
                self.get(name, limit_bytes=0)  # the answer to a HEAD does not say what is missing
                return None

    def delete(self, name: str) -> bool:
        """Remove the blob. S3 does not say whether there was one: ``True`` then."""
        with self._translating("removing", name):
            try:
                self._store.delete(name)
            except FileNotFoundError as error:
                self._require_bucket(error)
                return False
            return True

    def delete_many(self, names: Sequence[str]) -> None:
        """Remove these blobs, several at a time; the first failure is raised and ends it."""
        for name in names:
            _require_lawful(name)
        with self._translating("removing from"):
            try:
                self._store.delete(names)
            except FileNotFoundError as error:
                self._require_bucket(error)

    def list(self) -> Iterator[BlobInfo]:
        """Every blob, in no order, a page at a time. Objects of other names are left out."""
        with self._translating("listing"):
            pages = self._store.list(chunk_size=_LISTED)
        while True:
            with self._translating("listing"):
                page = next(pages, None)
            if page is None:
                return
            for found in page:
                if NAME.fullmatch(found["path"]):
                    at = found["last_modified"].timestamp()
                    yield BlobInfo(found["path"], found["size"], at)

    def _whole(self, name: str, limit_bytes: int | None) -> memoryview:
        result = self._store.get(name)
        size = result.meta["size"]
        buffer = take(size if limit_bytes is None else min(size, limit_bytes))
        return buffer[: _fill(buffer, result)]

    def _in_ranges(self, name: str, limit_bytes: int) -> memoryview:
        """As many ranges at once as there are lanes; the first answer says how long the blob is."""
        step = -(-limit_bytes // LANES)
        first = self._range(name, 0, step)
        if first is None:
            return self._whole(name, limit_bytes)
        size = min(first.meta["size"], limit_bytes)
        buffer = take(size)

        def read(lane: int) -> bool:
            begin, end = lane * step, min(size, (lane + 1) * step)
            result = first if lane == 0 else self._range(name, begin, end)
            return result is not None and _fill(buffer[begin:end], result) == end - begin

        if all(for_each(-(-size // step), LANES, lambda: read)):
            return buffer
        return self._whole(name, limit_bytes)

    def _range(self, name: str, begin: int, end: int) -> GetResult | None:
        """That range of an object; ``None`` where the server has no such range, or knows none."""
        from obstore.exceptions import GenericError

        try:
            return self._store.get(name, options={"range": (begin, end)})
        except GenericError as error:
            status = _STATUS.search(str(error))
            if "non-partial response" in str(error) or (status and status[1] in ("400", "416")):
                return None
            raise

    def _require_bucket(self, error: FileNotFoundError) -> None:
        """A bucket that is not there has no blobs, but that is no miss."""
        if _said(error)[0] == "NoSuchBucket":
            raise UnavailableError(f"{self._shown}: there is no such bucket; create it") from None

    @contextmanager
    def _translating(self, doing: str, name: str | None = None) -> Iterator[None]:
        """The storage layer's errors for obstore's, whose texts may quote a session token."""
        from obstore.exceptions import BaseError

        if name is not None:
            _require_lawful(name)
        if _FIRST_USER.setdefault("pid", os.getpid()) != os.getpid():
            raise UnavailableError(
                f"{self._shown}: this process was forked from one that used an object store; "
                "open the store after the fork, or start processes by 'spawn'"
            )
        try:
            yield
        except StateStoreError:
            raise
        except (BaseError, OSError, ValueError) as error:
            if self._renew is not None and _said(error)[1] == _SILENT:
                self._store = self._renew()
            raise _translated(error, f"{doing} {self._shown} {name or ''}".rstrip()) from None


def _require_lawful(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InputError(f"blob name {name!r} is unlawful: it must match {NAME.pattern}")


def _fill(buffer: memoryview, result: GetResult) -> int:
    """Write the response into `buffer`, as far as it reaches; how many bytes that were."""
    filled, size = 0, buffer.nbytes
    if size:
        for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
            taken = memoryview(chunk)[: size - filled]
            buffer[filled : filled + taken.nbytes] = taken
            filled += taken.nbytes
            if filled == size:
                break
    return filled


def _said(error: BaseException) -> tuple[str, str]:
    """The server's error code and what it wrote beside it; without one, the driver's own words."""
    text = str(error)
    if code := _CODE.search(text):
        message = _MESSAGE.search(text)
        return code[1] or code[2], message[1] if message else ""
    if "TimedOut" in text or "kind: Timeout" in text:
        return "", _SILENT
    if "Connection refused" in text or "ConnectionRefused" in text:
        return "", "connection refused"
    return "", text.partition("\n")[0].partition(": <?xml")[0][:300]


def _translated(error: Exception, what: str) -> BackendError | CorruptError:
    """The storage layer's error for `error`, met while doing `what`."""
    code, words = _said(error)
    said = f"{code}: {words}" if code and words else code or words
    status = _STATUS.search(str(error))
    if code in _FULL or (status and status[1] == "507"):
        return FullError(f"no space left {what} ({said}): free some, or lower the budget")
    if code in _BAD_OBJECT:
        return CorruptError(f"{what}: {said}")
    if code == "NoSuchBucket":
        return UnavailableError(f"{what}: there is no such bucket; create it")
    if status and status[1] in ("401", "403"):
        return UnavailableError(f"{what}: {said}; look at the credentials and their rights")
    return UnavailableError(f"{what}: {said}")
