"""A backend that keeps containers in a codec of its own.

The store encodes a state once, raw; what a tier wants otherwise is made here, behind the requests.
Bytes that are no container, or one that cannot be opened, pass as they are: whether a blob is sound
is the store's business.
"""

from __future__ import annotations

from dataclasses import replace

from statestore import codec
from statestore.backends.base import Backend, Blob
from statestore.backends.wrapper import Wrapper
from statestore.entry import Entry
from statestore.errors import ContainerError


class Recoded(Wrapper):
    """`inner`, whose new blobs are encoded by `codec_name`."""

    def __init__(self, inner: Backend, codec_name: codec.CodecName) -> None:
        super().__init__(inner)
        self._codec_name = codec_name

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        """As the port says, after encoding the container anew where it has another codec."""
        other = recoded(blob, self._codec_name)
        if other is not None:
            entry = replace(entry, blob_bytes=sum(memoryview(part).nbytes for part in other))
            blob = other
        return self.inner.publish(entry, blob, durable=durable)


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
