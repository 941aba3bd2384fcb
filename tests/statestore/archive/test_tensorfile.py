"""Files in the safetensors format: the library reads them, and hostile ones are refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.codec import Limits
from statestore.errors import (
    ContainerError,
    LayoutError,
    LimitError,
    NotAContainerError,
    TruncatedError,
)
from statestore.schema import DType, Tensor
from statestore.tensorfile import pack, parse
from tests.statestore.codec.codec_samples import small_state

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)


def tensor(name: str, dtype: DType, shape: list[int]) -> Tensor:
    size = dtype.itemsize * int(np.prod(shape, dtype=int))
    return Tensor.of(name, dtype, shape, (np.arange(size) % 251).astype(np.uint8))


def file_of(fields: Any, data: bytes = b"") -> bytes:
    header = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return len(header).to_bytes(8, "little") + header + data


@given(
    st.lists(
        st.builds(tensor, names, st.sampled_from(DType), st.lists(st.integers(0, 5), max_size=3)),
        max_size=5,
        unique_by=lambda each: each.spec.name,
    ),
    st.dictionaries(names, names, max_size=3),
)
def test_what_goes_in_comes_out(tensors: list[Tensor], metadata: dict[str, str]) -> None:
    found = parse(b"".join(pack(tensors, metadata)))
    assert dict(found.tensors) == {each.spec.name: each for each in tensors}
    assert dict(found.metadata) == metadata


def test_the_library_reads_and_writes_the_same() -> None:
    numpy = pytest.importorskip("safetensors.numpy", reason="not run: no safetensors here")
    parts = [part for part in small_state().parts if part.spec.dtype is not DType.BF16]
    found = numpy.load(b"".join(pack(parts, {"schema": "x"})))
    for part in parts:
        assert found[part.spec.name].tobytes() == bytes(part.data)
        assert found[part.spec.name].shape == part.spec.shape
    theirs = parse(numpy.save(found, {"a": "b"}))
    assert dict(theirs.tensors) == {part.spec.name: part for part in parts}
    assert dict(theirs.metadata) == {"a": "b"}


def described(**change: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change}


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", NotAContainerError),
        (b"PK\3\4", NotAContainerError),
        (file_of(b"{"), NotAContainerError),
        (file_of(b"[" * 500_000), LimitError),
        (file_of([]), LayoutError),
        (file_of(b'{"x":1,"x":2}'), LayoutError),
        ((1 << 40).to_bytes(8, "little"), LimitError),
        ((100).to_bytes(8, "little") + b"{}", TruncatedError),
        (file_of(described(), b"1234567"), TruncatedError),
        (file_of(described(), b"123456789"), LayoutError),
        (file_of(described(data_offsets=[1, 9]), bytes(9)), LayoutError),
        (file_of(described(data_offsets=[0, 4]), bytes(4)), LayoutError),
        (file_of(described(data_offsets=[0]), bytes(8)), LayoutError),
        (file_of(described(data_offsets=[-8, 0]), bytes(8)), LayoutError),
        (file_of(described(shape=[2.0]), bytes(8)), LayoutError),
        (file_of(described(shape=[1] * 9), bytes(4)), LimitError),
        (file_of(described(shape=[1 << 40]), bytes(8)), LimitError),
        (file_of(described(dtype="F64"), bytes(8)), LayoutError),
        (file_of(described(dtype=[]), bytes(8)), LayoutError),
        (file_of(described(more=1), bytes(8)), LayoutError),
        (file_of({"x": 5}), LayoutError),
        (file_of({**described(), "y": described()["x"]}, bytes(8)), LayoutError),
        (file_of({"__metadata__": {"a": 1}}), LayoutError),
        (file_of({"__metadata__": 1}), LayoutError),
    ],
)
def test_hostile_files_are_refused(data: bytes, error: type[ContainerError]) -> None:
    with pytest.raises(error):
        parse(data)


def test_limits_are_the_readers() -> None:
    data = b"".join(pack([tensor("x", DType.I8, [1]), tensor("y", DType.I8, [1])], {}))
    with pytest.raises(LimitError, match="tensors"):
        parse(data, Limits(tensors=1))
