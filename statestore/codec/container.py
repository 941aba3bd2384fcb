"""A state and its identity to bytes, and back. See the package for the byte table.

`decode` takes nothing on trust: sizes are held against `Limits` ahead of any allocation, every byte
is under a checksum or must be zero, and the container must be exactly as long as it says.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from statestore import buffers
from statestore.codec.frames import (
    Buffer,
    EncodedFrame,
    FrameDecoder,
    PlanesEncoder,
    check_sum,
    encode_raw,
)
from statestore.codec.header import (
    Frame,
    Header,
    check_limits,
    check_places,
    pack_header,
    parse_header,
)
from statestore.codec.layout import Image, Piece, aligned, image_of
from statestore.codec.limits import Limits
from statestore.codec.parallel import for_each
from statestore.errors import (
    CorruptError,
    InputError,
    LayoutError,
    LockedError,
    NotAContainerError,
    StateError,
    TruncatedError,
    UnsupportedVersionError,
)
from statestore.schema import State, Tensor

CodecName: TypeAlias = Literal["raw", "lossless"]
CODEC_NAMES: tuple[CodecName, ...] = get_args(CodecName)

MAGIC = b"\x89RWKVST\n"
FORMAT_VERSION = 1
SEALED_VERSION = 2  # see `sealing`
_PREFIX = struct.Struct("<8sII")  # magic, format version, header length
_CHECKSUM_BYTES = 16
#: Less is nearly done before another thread has begun, and where processors are busy the one who
#: waits for that thread waits for its turn (2.4 MB: 1.3 ms alone, 4 ms by two).
ALONE_BYTES = 8 << 20  # 8 MiB
_DEFAULT_LIMITS = Limits()
HEADER_START = _PREFIX.size + _CHECKSUM_BYTES


def encode(
    header: Header, state: State, codec: CodecName = "lossless", *, threads: int | None = None
) -> list[Buffer]:
    """The container's bytes as buffers that follow one another; their number has no meaning.

    With "raw" they are views of the state's own memory. The same header, state and codec give the
    same bytes with the same release of zstandard ("raw": always).

    Raises `StateError` where `header` is not of `state`, `InputError` for an unknown codec, and
    `LimitError` for what a reader would refuse by default.
    """
    if codec not in CODEC_NAMES:
        raise InputError(f"codec {codec!r} is not known: {', '.join(CODEC_NAMES)}")
    if header.specs != tuple(tensor.spec for tensor in state.parts):
        raise StateError("the header lists other tensors than the state: make it by Header.of")
    check_limits(header, Limits())
    image = image_of(header.specs)
    return assemble(header, _encode_pieces(image, state, codec, threads))


def assemble(header: Header, encoded: Sequence[EncodedFrame]) -> list[Buffer]:
    """The container of these frames; the header's own `frames` are not looked at."""
    head, frames = _head(header, encoded)
    buffers: list[Buffer] = [head]
    reached = len(head)
    for frame, place in zip(encoded, frames, strict=True):
        if place.offset > reached:
            buffers.append(bytes(place.offset - reached))
        buffers += [part for part in frame.parts if len(part)]
        reached = place.offset + place.length
    return buffers


def decode(
    blob: Buffer, limits: Limits | None = None, *, threads: int | None = None
) -> tuple[Header, State]:
    """Header and state of a whole container. Uncompressed tensors are views of `blob` itself.

    Raises a `ContainerError`; its class says what is wrong.
    """
    view, plan = _whole(blob, limits or _DEFAULT_LIMITS)
    header, image = plan.header, plan.image
    if header.seal is not None:
        raise LockedError(
            f"the container is encrypted with key {header.seal.key_id.hex()}: "
            "open the store with the option keys=, a key file's path"
        )
    wanted = threads_for(image, threads)
    if plan.packed:
        unpacking = Unpacking(view, header, image)
        for_each(len(header.frames), wanted, unpacking.worker)
        return header, unpacking.state()
    for_each(len(header.frames), wanted, lambda: partial(_check_frame, view, header))
    run = view[header.frames[0].offset :] if header.frames else view[:0]
    return header, _as_state(header, run, image.kept_runs)


def threads_for(image: Image, threads: int | None) -> int | None:
    """How many share the work on an image where nobody says."""
    return 1 if threads is None and image.nbytes < ALONE_BYTES else threads


def is_packed(header: Header) -> bool:
    """Whether a frame is compressed, so that tensors need memory of their own."""
    return any(frame.codec != "raw" for frame in header.frames)


class Unpacking:
    """Frames decoded into one new buffer, in any order and by several threads.

    Args:
        view: the container, in which a frame lies whole once it is asked for.
        header: the container's, checked.
        image: the header's.
    """

    def __init__(self, view: memoryview, header: Header, image: Image) -> None:
        self._view, self._header, self._image = view, header, image
        self._decoded = _room(image.nbytes)

    def worker(self) -> Callable[[int], None]:
        """One thread's: checks and decodes a frame. Raises a `ContainerError`."""
        decoder = _decoder()

        def work(i: int) -> None:
            piece = self._image.pieces[i]
            out = self._decoded[piece.begin : piece.end]
            data = _checked(self._view, self._header, i)
            decoder.decode(f"frame {i}", self._header.frames[i].codec, data, out)

        return work

    def state(self) -> State:
        """Once every frame is decoded. The tensors are views of the buffer."""
        return _as_state(self._header, self._decoded.data.toreadonly(), self._image.runs)


def read_whole(blob: Buffer, limits: Limits) -> tuple[memoryview, Header, Image]:
    """A view of a whole container, its header and image; every byte has its place.

    Frames are not looked into. Raises as `decode`.
    """
    view, plan = _whole(blob, limits)
    return view, plan.header, plan.image


def read_header(start: Buffer, limits: Limits | None = None) -> Header:
    """The header of a container of which at least the first bytes are given; frames are not read.

    Raises `TruncatedError` where the header itself is not complete, else a `ContainerError` as
    `decode`.
    """
    return read_start(memoryview(start), limits or Limits())[0]


def read_start(start: memoryview, limits: Limits) -> tuple[Header, Image, int]:
    """Header and image of a container of which at least the first bytes are given, and its size.

    Raises as `read_header`.
    """
    plan = _read(start.toreadonly().cast("B"), limits)
    return plan.header, plan.image, plan.size


def _encode_pieces(
    image: Image, state: State, codec: CodecName, threads: int | None
) -> list[EncodedFrame]:
    data = [tensor.data for tensor in state.parts]
    pieces = image.pieces
    room = _room(image.nbytes if codec == "lossless" else 0)

    def make_worker() -> Callable[[int], EncodedFrame]:
        if codec == "raw":
            return lambda i: encode_raw(_slices(image, pieces[i], data))
        encoder = _encoder()
        return lambda i: encoder.encode(
            _slices(image, pieces[i], data),
            pieces[i].itemsize,
            room[pieces[i].begin : pieces[i].end],
        )

    return for_each(len(pieces), threads_for(image, threads), make_worker)


def _slices(image: Image, piece: Piece, data: Sequence[memoryview]) -> list[memoryview]:
    """The runs of the tensors' memory that make up `piece`."""
    first = bisect_right(image.order, piece.begin, key=lambda i: image.offsets[i] + len(data[i]))
    slices: list[memoryview] = []
    for i in image.order[first:]:
        offset = image.offsets[i]
        if offset >= piece.end:
            break
        slices.append(data[i][max(piece.begin - offset, 0) : piece.end - offset])
    return [run for run in slices if len(run)]


def _head(header: Header, encoded: Sequence[EncodedFrame]) -> tuple[bytes, tuple[Frame, ...]]:
    """Prefix, checksum and header; a first pass with blank offsets finds the header's length."""
    blank = tuple(Frame(f.codec, 0, f.length, f.raw_length, f.checksum) for f in encoded)
    reached = HEADER_START + len(pack_header(replace(header, frames=blank)))
    frames: list[Frame] = []
    for frame in blank:
        frames.append(replace(frame, offset=aligned(reached)))
        reached = frames[-1].offset + frame.length
    packed = pack_header(replace(header, frames=tuple(frames)))
    Limits().check("the header's length", len(packed), Limits().header_bytes)
    version = FORMAT_VERSION if header.seal is None else SEALED_VERSION
    prefix = _PREFIX.pack(MAGIC, version, len(packed))
    return prefix + _header_checksum(prefix, packed) + packed, tuple(frames)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a header says of its container. The same is given to all who ask; nobody changes it."""

    header: Header
    image: Image
    size: int  # the container's, in bytes
    packed: bool  # `is_packed`
    gaps: tuple[tuple[int, slice], ...]  # numbers of frames, and what is zero ahead of them


@lru_cache(maxsize=64)  # what is read once is read again soon: the start of many prompts
def _planned(packed: bytes, limits: Limits, version: int) -> _Plan:
    """The plan of the header spelt by `packed`. Raises as `parse_header` and `check_places`."""
    header, image = parse_header(packed, limits, sealed=version == SEALED_VERSION)
    reached = HEADER_START + len(packed)
    size = check_places(header, reached)
    gaps: list[tuple[int, slice]] = []
    for i, frame in enumerate(header.frames):
        if frame.offset > reached:
            gaps.append((i, slice(reached, frame.offset)))
        reached = frame.offset + frame.length
    return _Plan(header, image, size, is_packed(header), tuple(gaps))


def _whole(blob: Buffer, limits: Limits) -> tuple[memoryview, _Plan]:
    view = memoryview(blob).toreadonly().cast("B")
    plan = _read(view, limits)
    if len(view) < plan.size:
        raise TruncatedError(f"the container has {len(view)} bytes, its header says {plan.size}")
    if len(view) > plan.size:
        raise LayoutError(f"{len(view) - plan.size} bytes trail behind the container's {plan.size}")
    for i, gap in plan.gaps:
        if any(view[gap]):
            raise LayoutError(f"the padding ahead of frame {i} is not zero")
    return view, plan


def _read(view: memoryview, limits: Limits) -> _Plan:
    """The plan of a container of which at least the first bytes are given."""
    start = bytes(view[:HEADER_START])
    if start[: len(MAGIC)] != MAGIC[: len(start)]:
        raise NotAContainerError(f"no state container: it begins with {start[:8].hex()}")
    if len(start) < HEADER_START:
        raise TruncatedError(f"the container ends after {len(start)} bytes")
    _, version, length = _PREFIX.unpack_from(start)
    if version not in (FORMAT_VERSION, SEALED_VERSION):
        raise UnsupportedVersionError(
            f"the container has format version {version}, "
            f"this release reads {FORMAT_VERSION} and {SEALED_VERSION}"
        )
    limits.check("the header's length", length, limits.header_bytes)
    end = HEADER_START + length
    if len(view) < end:
        raise TruncatedError(f"the container ends after {len(view)} bytes, its header at {end}")
    packed = bytes(view[HEADER_START:end])
    if _header_checksum(start[: _PREFIX.size], packed) != start[_PREFIX.size :]:
        raise CorruptError("the container's header is damaged: its checksum does not match")
    return _planned(packed, limits, version)


def _header_checksum(prefix: bytes, packed: bytes) -> bytes:
    return xxh3_128(prefix + packed).digest()


def _check_frame(view: memoryview, header: Header, i: int) -> None:
    _checked(view, header, i)


def _as_state(header: Header, run: memoryview, places: Sequence[slice]) -> State:
    """The state whose tensors lie at these places of `run`."""
    tensors = Tensor.cut(run, header.specs, places)
    output = tensors[-1] if header.output is not None else None
    return State(header.schema_id, tensors[: len(header.tensors)], output)


class _Own(threading.local):
    """Each thread's coders, whose working memory is dear to make."""

    encoder: PlanesEncoder | None = None
    decoder: FrameDecoder | None = None


_OWN = _Own()


def _encoder() -> PlanesEncoder:
    if _OWN.encoder is None:
        _OWN.encoder = PlanesEncoder()
    return _OWN.encoder


def _decoder() -> FrameDecoder:
    if _OWN.decoder is None:
        _OWN.decoder = FrameDecoder()
    return _OWN.decoder


def _room(size: int) -> NDArray[np.uint8]:
    return np.frombuffer(buffers.take(size), np.uint8)


def _checked(view: memoryview, header: Header, i: int) -> memoryview:
    frame = header.frames[i]
    data = view[frame.offset : frame.offset + frame.length]
    check_sum(f"frame {i}", data, frame.checksum)
    return data
