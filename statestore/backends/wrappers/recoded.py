"""A backend that keeps containers in a codec of its own.

The store encodes a state once, raw; what a tier wants otherwise is made here, behind the requests.
Bytes that are no container, or one that cannot be opened, pass as they are: whether a blob is sound
is the store's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from statestore import codec
from statestore.backends.base import Backend, Blob, Follower, read_followed
from statestore.backends.wrapper import Wrapper
from statestore.codec import kernel
from statestore.codec.auto import AutoCodec
from statestore.entry import Entry
from statestore.errors import ContainerError

SETTLED_S = 1.0  # of two kernels the one is measured that will be used


class Recoded(Wrapper):
    """`inner`, whose new blobs are encoded by `codec_name`, or by what suits the place best."""

    def __init__(self, inner: Backend, codec_name: codec.CodecName | AutoCodec) -> None:
        super().__init__(inner)
        self._codec_name = codec_name

    def read(self, entry: Entry) -> memoryview | None:
        """As the port says; how long it takes is noted for `auto`."""
        return self._timed(lambda: self.inner.read(entry))

    def read_followed(self, entry: Entry, follower: Follower) -> memoryview | None:
        """As `read` and `Arriving` say; what the follower does counts as waiting for the place."""
        return self._timed(lambda: read_followed(self.inner, entry, follower))

    def _timed(self, read: Callable[[], memoryview | None]) -> memoryview | None:
        began = time.perf_counter()
        blob = read()
        if blob is not None and isinstance(self._codec_name, AutoCodec):
            self._codec_name.note_read(len(blob), time.perf_counter() - began)
        return blob

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says, after encoding the container anew where it has another codec."""
        auto = self._codec_name if isinstance(self._codec_name, AutoCodec) else None
        if auto is not None and not auto.knows_codec:
            measure_codec(auto, blob)
        other = recoded(blob, self._name())
        if other is not None:
            entry = replace(entry, blob_bytes=sum(memoryview(part).nbytes for part in other))
            blob = other
        began = time.perf_counter()
        published = self.inner.publish(entry, blob, durable=durable)
        if auto is not None and published:
            auto.note_write(entry.blob_bytes, time.perf_counter() - began)
        return published

    def _name(self) -> codec.CodecName:
        name = self._codec_name
        return name.choose() if isinstance(name, AutoCodec) else name


def measure_codec(auto: AutoCodec, blob: Blob) -> None:
    """Encode the state in `blob` losslessly and decode it again, for the time that this takes.

    The quicker of two tries each: the first of a process makes threads and memory that stay.
    """
    with suppress(ContainerError):
        header, state = codec.decode(b"".join(blob))
        kernel.settled(SETTLED_S)
        packed = b"".join(codec.encode(header, state, "lossless"))
        encode_s = min(_seconds(lambda: codec.encode(header, state, "lossless")) for _ in range(2))
        decode_s = min(_seconds(lambda: codec.decode(packed)) for _ in range(2))
        auto.note_codec(state.nbytes, len(packed), encode_s, decode_s)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def recoded(blob: Blob, codec_name: codec.CodecName) -> Blob | None:
    """The container `blob` in another codec; ``None`` where there is nothing to change."""
    whole = blob[0] if len(blob) == 1 else b"".join(blob)
    try:
        header = codec.read_header(whole)
        packed = any(frame.codec != "raw" for frame in header.frames)
        if packed == (codec_name != "raw"):
            return None
        header, state = codec.decode(whole)
    except ContainerError:
        return None
    return codec.encode(header, state, codec_name)
