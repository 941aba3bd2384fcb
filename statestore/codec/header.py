"""The header of a container, and the one parser of it.

A header is a MessagePack map with exactly the fields of `_FIELDS`, in that order; it has one
spelling, so equal headers are equal bytes and anything else is refused. New fields come with a new
format version; what is open to additions is `provenance`, a map of texts that no decision rests on.

A header says nothing twice that could disagree: where frames lie follows from the tensors
(`layout`), and what is written down of it must be just that.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TypeVar, cast

import msgpack  # type: ignore[import-untyped]

from statestore.codec.frames import CHECKSUM_BYTES, FRAME_CODECS, ITEM_SIZE, FrameCodec, shortest
from statestore.codec.layout import Image, aligned, image_of
from statestore.codec.limits import Limits
from statestore.errors import (
    ForeignError,
    InputError,
    LayoutError,
    LimitError,
    UnsupportedVersionError,
)
from statestore.keyring import ID_BYTES
from statestore.keys import StateKey, hashing
from statestore.keys.state_key import TOKENS_LIMIT
from statestore.schema import DType, State, TensorSpec

_FIELDS = (
    "key",
    "tokens",
    "fingerprint",
    "namespace",
    "token_digest",
    "schema",
    "tensors",
    "output",
    "frames",
    "provenance",
)
_SEALED_FIELDS = (*_FIELDS, "seal")  # of format version 2
_FRAME = struct.Struct("<8sQQQ16s")  # codec, offset, length, raw length, checksum
SALT_BYTES = 32
TAG_BYTES = 16  # of a frame, and of the header
_SPEC_FIELDS = 3
_MAX_DIMENSION = 1 << 40
_DTYPES = {dtype.value: dtype for dtype in DType}
UNKNOWN_TOKENS = bytes(hashing.DIGEST_BYTES)

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the container; sizes in bytes, the offset from the container's start."""

    codec: FrameCodec
    offset: int
    length: int
    raw_length: int
    checksum: bytes  # xxh3_128 of the stored bytes


@dataclass(frozen=True, slots=True)
class Seal:
    """What an encrypted container says of its encryption; see `sealing`."""

    key_id: bytes  # 8 bytes
    salt: bytes  # 32 bytes
    tag: bytes  # 16 bytes, over the header


@dataclass(frozen=True, slots=True)
class Header:
    """What a container says of itself. `frames` is filled in by `encode`."""

    key: StateKey
    fingerprint: bytes  # digest, 32 bytes
    namespace: str
    schema_id: str
    tensors: tuple[TensorSpec, ...]
    output: TensorSpec | None = None
    token_digest: bytes = UNKNOWN_TOKENS  # of the plain tokens; 32 bytes
    provenance: Mapping[str, str] = field(default_factory=dict)
    frames: tuple[Frame, ...] = ()
    seal: Seal | None = None  # None: not encrypted

    @classmethod
    def of(
        cls,
        state: State,
        *,
        key: StateKey,
        fingerprint: bytes,
        namespace: str,
        token_digest: bytes = UNKNOWN_TOKENS,
        provenance: Mapping[str, str] | None = None,
    ) -> Header:
        """The header of `state` under `key`, still without frames. Raises `InputError`."""
        notes = dict(provenance or {})
        for text in (namespace, state.schema_id, *notes, *notes.values()):
            hashing.utf8(text, "a container's text")
        for what, digest in (("fingerprint", fingerprint), ("token digest", token_digest)):
            if not hashing.is_digest(digest):
                raise InputError(
                    f"{what}: a digest is {hashing.DIGEST_BYTES} bytes, not {digest!r}"
                )
        return cls(
            key=key,
            fingerprint=fingerprint,
            namespace=namespace,
            schema_id=state.schema_id,
            tensors=tuple(tensor.spec for tensor in state.tensors),
            output=None if state.output is None else state.output.spec,
            token_digest=token_digest,
            provenance=notes,
        )

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors', then the output's."""
        return self.tensors if self.output is None else (*self.tensors, self.output)

    @property
    def state_bytes(self) -> int:
        """Size of the decoded state."""
        return sum(spec.nbytes for spec in self.specs)


def expect(header: Header, key: StateKey, fingerprint: bytes, namespace: str) -> None:
    """Raises `ForeignError` unless the container is of this key, fingerprint and namespace."""
    if (header.key, header.fingerprint, header.namespace) == (key, fingerprint, namespace):
        return
    wanted = {"key": key, "fingerprint": fingerprint.hex(), "namespace": namespace}
    found = {
        "key": header.key,
        "fingerprint": header.fingerprint.hex(),
        "namespace": header.namespace,
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise ForeignError(f"the container is of {name} {found[name]}, not {value}")


def pack_header(header: Header) -> bytes:
    """The header's one spelling."""
    output = header.output
    fields = (
        header.key.digest,
        header.key.n_tokens,
        header.fingerprint,
        header.namespace,
        header.token_digest,
        header.schema_id,
        [(spec.name, spec.dtype, spec.shape) for spec in header.tensors],
        output and (output.name, output.dtype, output.shape),
        b"".join(_pack_frame(frame) for frame in header.frames),
        dict(sorted(header.provenance.items())),
    )
    named: dict[str, object] = dict(zip(_FIELDS, fields, strict=True))
    if header.seal is not None:
        named["seal"] = (header.seal.key_id, header.seal.salt, header.seal.tag)
    return cast("bytes", msgpack.packb(named))


def parse_header(data: bytes, limits: Limits, *, sealed: bool = False) -> tuple[Header, Image]:
    """The header spelt by `data`, and the image that its tensors make; `sealed`: of an encrypted
    container.

    Raises `LayoutError`, `LimitError` or `UnsupportedVersionError`; offsets of frames are not
    looked at.
    """
    fields = _unpack(data, limits)
    expected = _SEALED_FIELDS if sealed else _FIELDS
    if not isinstance(fields, dict) or tuple(fields) != expected:
        found = list(fields)[:20] if isinstance(fields, dict) else type(fields).__name__
        raise LayoutError(f"header: the fields are {found}, expected {list(expected)}")
    try:
        described = _described(fields["tensors"], fields["output"])
    except TypeError as error:  # a map has no hash
        raise LayoutError("header: a tensor is described by a map, expected an array") from error
    header = Header(
        key=StateKey(_digest(fields, "key"), _count(fields["tokens"], "tokens", TOKENS_LIMIT - 1)),
        fingerprint=_digest(fields, "fingerprint"),
        namespace=_typed(fields["namespace"], str, "namespace"),
        schema_id=_typed(fields["schema"], str, "schema"),
        tensors=described.tensors,
        output=described.output,
        token_digest=_digest(fields, "token_digest"),
        provenance=_provenance(fields["provenance"]),
        frames=_frames(_typed(fields["frames"], bytes, "frames")),
        seal=_seal(fields["seal"]) if sealed else None,
    )
    check_limits(header, limits)
    if pack_header(header) != data:
        raise LayoutError("header: not in its one spelling")
    _check_frames(header, described.image)
    return header, described.image


def check_limits(header: Header, limits: Limits) -> None:
    """Raises `LimitError` for a header that a reader with these limits refuses."""
    specs = header.specs
    limits.check("the number of tensors", len(specs), limits.tensors)
    names = {spec.name for spec in specs}
    if len(names) != len(specs):
        raise LayoutError("header: two tensors have the same name")
    for text in (header.namespace, header.schema_id, *names, *header.provenance):
        limits.check("a name's length in bytes", len(text.encode()), limits.name_bytes)
    rank = max((len(spec.shape) for spec in specs), default=0)
    limits.check("a tensor's rank", rank, limits.dimensions)
    limits.check(
        "the number of provenance fields", len(header.provenance), limits.provenance_fields
    )
    for name, value in header.provenance.items():
        limits.check(f"provenance {name}", len(value.encode()), limits.provenance_bytes)
    limits.check("the decoded size in bytes", header.state_bytes, limits.decoded_bytes)


def check_places(header: Header, header_end: int) -> int:
    """The container's size, if its frames lie one behind the other from `header_end` on.

    Raises `LayoutError` that names the first frame that does not.
    """
    reached = header_end
    for i, frame in enumerate(header.frames):
        if frame.offset != aligned(reached):
            raise LayoutError(
                f"frame {i} starts at byte {frame.offset}, its place is {aligned(reached)}"
            )
        reached = frame.offset + frame.length
    return reached


def _unpack(data: bytes, limits: Limits) -> object:
    try:
        unpacked: object = msgpack.unpackb(
            data,
            use_list=False,
            strict_map_key=True,
            max_str_len=max(limits.name_bytes, limits.provenance_bytes),
            max_bin_len=limits.header_bytes,
            max_array_len=max(limits.tensors, limits.dimensions, _SPEC_FIELDS),
            max_map_len=max(len(_FIELDS), limits.provenance_fields),
            max_ext_len=0,
        )
    except msgpack.StackError as error:
        raise LimitError("header: nested beyond reason") from error
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        kind = LimitError if "exceeds max_" in str(error) else LayoutError
        raise kind(f"header: no sound MessagePack: {error or type(error).__name__}") from error
    return unpacked


def _typed(value: object, kind: type[Kind], what: str) -> Kind:
    if type(value) is not kind:  # a bool is an int to isinstance
        raise LayoutError(f"header: {what} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _count(value: object, what: str, limit: int) -> int:
    count = _typed(value, int, what)
    if not 0 <= count <= limit:
        raise LayoutError(f"header: {what} is {count}, expected 0..{limit}")
    return count


def _digest(fields: Mapping[str, object], name: str) -> bytes:
    value = _typed(fields[name], bytes, name)
    if len(value) != hashing.DIGEST_BYTES:
        raise LayoutError(f"header: {name} has {len(value)} bytes, expected {hashing.DIGEST_BYTES}")
    return value


@dataclass(frozen=True)
class _Described:
    tensors: tuple[TensorSpec, ...]
    output: TensorSpec | None

    @cached_property
    def image(self) -> Image:  # its size is unchecked until it is asked for
        return image_of(self.tensors if self.output is None else (*self.tensors, self.output))


@lru_cache(maxsize=16)
def _described(tensors: object, output: object) -> _Described:
    """The specs. A model's containers all say the same here, and it is long.

    What is equal and yet of another type (a bool for an int) is not in the header's one spelling.
    """
    specs = tuple(_spec(item) for item in _typed(tensors, tuple, "tensors"))
    return _Described(specs, None if output is None else _spec(output))


def _spec(value: object) -> TensorSpec:
    parts = _typed(value, tuple, "a tensor")
    if len(parts) != _SPEC_FIELDS:
        raise LayoutError(f"header: a tensor has {len(parts)} fields, expected {_SPEC_FIELDS}")
    name = _typed(parts[0], str, "a tensor's name")
    dtype = _typed(parts[1], str, "a dtype")
    if dtype not in _DTYPES:
        raise LayoutError(f"header: {name} has dtype {dtype!r}, known: {', '.join(DType)}")
    shape = _typed(parts[2], tuple, "a shape")
    for size in shape:
        _count(size, "a dimension", _MAX_DIMENSION)
    return TensorSpec(name, _DTYPES[dtype], shape)


def _seal(value: object) -> Seal:
    parts = _typed(value, tuple, "the seal")
    sizes = [len(_typed(part, bytes, "a part of the seal")) for part in parts]
    if sizes != [ID_BYTES, SALT_BYTES, TAG_BYTES]:
        raise LayoutError(f"header: the seal's parts have {sizes[:9]} bytes")
    return Seal(*parts)


def _provenance(value: object) -> dict[str, str]:
    fields = _typed(value, dict, "provenance")
    return {
        _typed(name, str, "a provenance name"): _typed(text, str, f"provenance {name}")
        for name, text in fields.items()
    }


def _pack_frame(frame: Frame) -> bytes:
    name = frame.codec.encode()
    return _FRAME.pack(name, frame.offset, frame.length, frame.raw_length, frame.checksum)


def _frames(table: bytes) -> tuple[Frame, ...]:
    if len(table) % _FRAME.size:
        raise LayoutError(f"header: frames has {len(table)} bytes, no multiple of {_FRAME.size}")
    return tuple(_frame(i, *row) for i, row in enumerate(_FRAME.iter_unpack(table)))


def _frame(
    i: int, codec: bytes, offset: int, length: int, raw_length: int, checksum: bytes
) -> Frame:
    name = codec.rstrip(b"\0").decode("ascii", "backslashreplace")
    if name not in FRAME_CODECS:
        raise UnsupportedVersionError(
            f"frame {i} has codec {name!r}, this release knows {', '.join(FRAME_CODECS)}"
        )
    assert len(checksum) == CHECKSUM_BYTES
    return Frame(name, offset, length, raw_length, checksum)


def _check_frames(header: Header, image: Image) -> None:
    if len(header.frames) != len(image.pieces):
        raise LayoutError(
            f"header: {len(header.frames)} frames for an image of {len(image.pieces)} pieces"
        )
    added = 0 if header.seal is None else TAG_BYTES
    for i, (frame, piece) in enumerate(zip(header.frames, image.pieces, strict=True)):
        if ITEM_SIZE.get(frame.codec, piece.itemsize) != piece.itemsize:
            raise LayoutError(f"frame {i} is {frame.codec} over {piece.itemsize}-byte elements")
        if frame.raw_length != piece.end - piece.begin:
            raise LayoutError(
                f"frame {i} is of {frame.raw_length} bytes, its piece has {piece.end - piece.begin}"
            )
        longest = frame.raw_length - (frame.codec != "raw")
        if not shortest(frame.codec, frame.raw_length) <= frame.length - added <= longest:
            raise LayoutError(
                f"frame {i} ({frame.codec}) has {frame.length} bytes for {frame.raw_length}"
            )
