"""One state in a file that another engine reads or has written; `statestore.layouts` has the maps.

rwkv       safetensors: the tensors as they are stored, by their names
rwkv-cpp   float32 numbers, little-endian, one after the other: rwkv.cpp's own buffer
fla        safetensors: layers.<i>.recurrent_state, conv_state and ffn_state in fp32
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from statestore import codec, tensorfile
from statestore.blobs.filesystem import storage_error
from statestore.entry import Entry, Role
from statestore.errors import BackendError, InputError, StateError
from statestore.keys import Namespace, StateKey, named_key
from statestore.layouts import from_fla, from_rwkv_cpp, to_fla, to_float32, to_rwkv_cpp
from statestore.schema import DType, Schema, State, Tensor
from statestore.store import Identity, PutOutcome, StateStore
from statestore.transfer import untimed

LAYOUTS: Final = ("rwkv", "rwkv-cpp", "fla")


class Named(NamedTuple):
    """What a state that comes from elsewhere is to be found by."""

    name: str
    n_tokens: int
    salt: bytes


def write_layout(store: StateStore, entry: Entry, layout: str, path: Path) -> None:
    """Write the state of `entry` to `path`, whole or not at all.

    Raises:
        InputError: `path` is there already, or no such engine has states of this kind.
        ContainerError: the state is damaged, or gone.
    """
    if path.exists():
        raise InputError(f"{path} is there already: remove it, or give another name")
    _, state = _load(store, entry)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.writelines(_pack(entry, state, layout))
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except OSError as error:
        raise storage_error(error, f"writing {part}") from error


def read_layout(store: StateStore, path: Path, layout: str, like: Entry, named: Named) -> StateKey:
    """Store the state in `path` under a name, as one of the model and namespace of `like`.

    Raises:
        InputError: it does not fit that model, or the name is taken.
        ContainerError: the file is none of that layout.
        BackendError: it was not stored.
    """
    header, _ = _load(store, like)
    schema = Schema(header.schema_id, header.tensors, 0)
    state = _parse(_bytes(path, schema), layout, schema)
    namespace = Namespace(like.namespace, named.salt)
    key = named_key(namespace, named.name, like.fingerprint, named.n_tokens)
    outcome = store.put(
        Identity(like.fingerprint, like.namespace),
        key,
        state,
        token_digest=codec.header.UNKNOWN_TOKENS,
        role=Role.NAMED,
        model=like.model,
        labels={"name": named.name},
        durable=True,
    )
    if outcome is PutOutcome.PRESENT:
        raise InputError(f"a state of the name {named.name!r} is stored: `statestore rm {key.hex}`")
    if outcome is PutOutcome.DROPPED:
        raise BackendError(f"{store.backend.url} did not take the state")
    return key


def _load(store: StateStore, entry: Entry) -> tuple[codec.Header, State]:
    blob = untimed(store.backend).read(entry)
    if blob is None:
        raise InputError(f"{entry.key} has gone meanwhile")
    header, state = codec.decode(blob)
    codec.expect(header, entry.key, entry.fingerprint, entry.namespace)
    return header, state


def _pack(entry: Entry, state: State, layout: str) -> Sequence[bytes | memoryview]:
    if layout == "rwkv-cpp":
        return [to_rwkv_cpp(state).astype("<f4").tobytes()]
    about = {
        "layout": layout,
        "schema": state.schema_id,
        "key": str(entry.key),
        "fingerprint": entry.fingerprint.hex(),
        "model": entry.model,
    }
    if layout == "rwkv":
        return tensorfile.pack(state.parts, about)
    layers = enumerate(to_fla(state))
    tensors = [
        Tensor.of(f"layers.{i}.{name}", DType.F32, array.shape, array)
        for i, layer in layers
        for name, array in layer.items()
    ]
    return tensorfile.pack(tensors, about)


def _parse(data: bytes, layout: str, schema: Schema) -> State:
    if layout == "rwkv-cpp":
        if len(data) % 4:
            raise StateError(f"{len(data)} bytes are no float32 numbers")
        return from_rwkv_cpp(schema, np.frombuffer(data, "<f4"))
    found = dict(tensorfile.parse(data).tensors)
    if layout == "rwkv":
        names = [spec.name for spec in schema.tensors]
        parts = [found[name] for name in names if name in found]
        output = next((t for name, t in found.items() if name.startswith("output.")), None)
        state = State(schema.id, tuple(parts), output)
        known = len(parts) + (output is not None)
        if known != len(found) or [part.spec for part in parts] != list(schema.tensors):
            raise StateError(f"the file's tensors are not those of {schema.id}")
        return state
    layers: dict[int, dict[str, NDArray[Any]]] = {}
    for name, tensor in found.items():
        place, _, part = name.removeprefix("layers.").partition(".")
        if not (name.startswith("layers.") and place.isascii() and place.isdigit()):
            raise StateError(f"{name!r} is no tensor of flash-linear-attention's cache")
        layers.setdefault(int(place), {})[part] = to_float32(tensor)
    if sorted(layers) != list(range(len(layers))):
        raise StateError(f"layers {sorted(layers)} are not all from 0 on")
    return from_fla(schema, [layers[i] for i in range(len(layers))])


def _bytes(path: Path, schema: Schema) -> bytes:
    """The file, unless it is far larger than such a state."""
    limit = 4 * schema.nbytes + codec.Limits().header_bytes + (64 << 20)
    try:
        size = path.stat().st_size
        if size > limit:
            raise StateError(f"{path} has {size} bytes, a state of {schema.id} {schema.nbytes}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
