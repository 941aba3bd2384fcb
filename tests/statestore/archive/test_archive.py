"""Archives: what goes in comes out, what was stopped goes on, what is damaged is never taken."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore.archive import FORMAT_VERSION, MAGIC, ArchiveReader, ArchiveWriter, resume
from statestore.archive.entries import ENTRY_BYTES, pack_entry, parse_entry
from statestore.archive.format import DONE, HEAD, START, STATE, head_of, start_of
from statestore.codec import Limits
from statestore.entry import Entry, Role
from statestore.errors import (
    ContainerError,
    CorruptError,
    LayoutError,
    LimitError,
    NotAContainerError,
    TruncatedError,
    UnsupportedVersionError,
)
from statestore.keys import StateKey
from tests.places.backend_places import a_blob, a_key, an_entry

ABOUT = {"place": "file:///states", "selection": ""}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
moments = st.floats(0, 4e9)
counts = st.integers(0, 2**63 - 1)
digests = st.binary(min_size=32, max_size=32)
entries = st.builds(
    Entry,
    key=st.builds(StateKey, digests, counts),
    namespace=texts,
    fingerprint=digests,
    token_digest=digests,
    schema_id=texts,
    role=st.sampled_from(Role),
    blob=st.just(""),
    blob_bytes=st.just(0),
    state_bytes=counts,
    has_output=st.booleans(),
    cost_s=moments,
    created_at=moments,
    used_at=moments,
    hits=counts,
    score=st.floats(-1e12, 1e12),
    ancestor_tokens=counts,
    pinned=st.booleans(),
    expires_at=st.none() | moments,
    model=texts,
    labels=st.dictionaries(texts, texts, max_size=5),
)


def bare(entry: Entry, blob: bytes) -> Entry:
    """As it comes out: without a blob's name."""
    return replace(entry, blob="", blob_bytes=len(blob))


def written(*numbers: int, about: dict[str, str] = ABOUT, end: bool = True) -> bytes:
    file = io.BytesIO()
    writer = ArchiveWriter.begin(file, about)
    for number in numbers:
        writer.add(an_entry(number), [a_blob(a_key(number))])
    if end:
        writer.finish()
    return file.getvalue()


def read(data: bytes, **given: Any) -> list[tuple[StateKey, str]]:
    return [(r.entry.key, r.problem) for r in ArchiveReader(io.BytesIO(data), **given)]


@given(st.lists(st.tuples(entries, st.binary(max_size=3000)), max_size=5), st.integers(0, 3000))
def test_what_goes_in_comes_out(states: list[tuple[Entry, bytes]], cut: int) -> None:
    file = io.BytesIO()
    writer = ArchiveWriter.begin(file, ABOUT)
    for entry, blob in states:
        writer.add(entry, [blob[:cut], blob[cut:]])
    writer.finish()
    reader = ArchiveReader(io.BytesIO(file.getvalue()))
    found = [(record.entry, bytes(record.blob), record.problem) for record in reader]
    assert found == [(bare(entry, blob), blob, "") for entry, blob in states]
    assert (reader.about, reader.states, reader.complete) == (ABOUT, len(states), True)


def test_the_bytes_are_those_of_the_table() -> None:
    """Written by hand from the package's docstring."""
    from xxhash import xxh3_128

    def checked(data: bytes, more: bytes) -> bytes:
        return data + xxh3_128(data + more).digest()

    entry, blob = an_entry(1), a_blob(a_key(1))
    about = msgpack.packb(ABOUT)
    start = checked(MAGIC + (1).to_bytes(4, "little") + len(about).to_bytes(4, "little"), about)
    packed = pack_entry(entry)
    sizes = len(packed).to_bytes(4, "little") + len(blob).to_bytes(8, "little")
    head = checked(b"STAT" + sizes + xxh3_128(blob).digest(), packed)
    end = msgpack.packb([1, hashlib.sha256(start + head).digest()])
    tail = checked(b"DONE" + len(end).to_bytes(4, "little") + bytes(24), end)
    assert written(1) == start + about + head + packed + blob + tail + end


def test_an_archive_is_sound_up_to_where_it_was_cut() -> None:
    data = written(1, 2, 3)
    ends = {0: len(written(end=False))}
    ends.update({n: len(written(*range(1, n + 1), end=False)) for n in (1, 2, 3)})
    for cut in range(len(data)):
        whole = max((n for n, end in ends.items() if end <= cut), default=-1)
        if whole < 0:
            with pytest.raises(ContainerError):
                ArchiveReader(io.BytesIO(data[:cut]))
            continue
        reader = ArchiveReader(io.BytesIO(data[:cut]))
        found = []
        with pytest.raises(TruncatedError, match=f"{whole} of its states"):
            found.extend(iter(reader))
        assert not reader.complete
        assert reader.sound_bytes == ends[whole]


def test_every_flipped_bit_is_noticed() -> None:
    data = written(1, 2)
    sound = read(data)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        try:
            found = read(bytes(damaged))
        except ContainerError:
            continue
        assert len(found) == 2, "only blobs may be damaged and the rest be read"
        assert sum(bool(problem) for _, problem in found) == 1
        assert [key for key, _ in found] == [key for key, _ in sound]


def test_a_damaged_blob_costs_that_state_alone() -> None:
    data = bytearray(written(1, 2, 3))
    data[len(written(1, end=False)) + HEAD.size + len(pack_entry(an_entry(2)))] ^= 1
    found = read(bytes(data))
    assert [key for key, _ in found] == [a_key(1), a_key(2), a_key(3)]
    assert [bool(problem) for _, problem in found] == [False, True, False]
    with pytest.raises(CorruptError):
        read(bytes(data), strict=True)


@pytest.mark.parametrize("cut", ["start", "head", "blob", "done", "whole"])
def test_what_was_stopped_goes_on(cut: str) -> None:
    one, two = len(written(1, end=False)), len(written(1, 2, end=False))
    whole = written(1, 2, 3)
    length = {
        "start": len(written(end=False)),
        "head": one + 20,
        "blob": two - 10,
        "done": len(whole) - 3,
        "whole": len(whole),
    }[cut]
    kept = {"start": [], "head": [1], "blob": [1], "done": [1, 2, 3], "whole": [1, 2, 3]}[cut]
    file = io.BytesIO(whole[:length])
    resumed = resume(file, ABOUT)
    assert resumed is not None
    assert resumed.digests == {a_key(number).digest for number in kept}
    for number in (1, 2, 3):
        if number not in kept:
            resumed.writer.add(an_entry(number), [a_blob(a_key(number))])
    resumed.writer.finish()
    assert file.getvalue() == whole


def test_it_goes_on_ahead_of_a_hole_that_a_power_cut_left() -> None:
    data = bytearray(written(1, 2, end=False))
    data[-100:] = bytes(100)
    resumed = resume(io.BytesIO(data), ABOUT)
    assert resumed is not None
    assert resumed.digests == {a_key(1).digest}


@pytest.mark.parametrize("data", [b"", b"something else", written(1, about={"place": "other"})])
def test_what_is_no_beginning_of_it_is_left_alone(data: bytes) -> None:
    file = io.BytesIO(data)
    assert resume(file, ABOUT) is None
    assert file.getvalue() == data


def test_a_newer_version_is_refused_by_name() -> None:
    data = bytearray(written(1))
    data[8] = FORMAT_VERSION + 1
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        read(bytes(data))


@pytest.mark.parametrize("data", [b"", b"PK\3\4 a zip", b"\x89RWKVST\n a container" + bytes(90)])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(NotAContainerError):
        read(data)


def forged(kind: bytes, entry: bytes, blob_bytes: int, blob: bytes = b"") -> bytes:
    about = msgpack.packb({})
    return start_of(about) + about + head_of(kind, entry, blob_bytes, bytes(16)) + entry + blob


def test_sizes_are_held_against_limits_ahead_of_memory() -> None:
    sizes = Limits(decoded_bytes=1000)
    large = forged(STATE, pack_entry(an_entry(1)), sizes.container_bytes + 1)
    with pytest.raises(LimitError, match="blob's size"):
        read(large, limits=sizes)
    with pytest.raises(LimitError, match="an entry of"):
        read(forged(STATE, bytes(ENTRY_BYTES + 1), 0))
    start = bytearray(start_of(b""))
    start[12:16] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(LimitError, match="about itself"):
        read(bytes(start))
    # Within the limit, but not there: memory is taken as the bytes come.
    with pytest.raises(TruncatedError):
        read(forged(STATE, pack_entry(an_entry(1)), 8 << 30, b"short"))


@pytest.mark.parametrize("states", [0, 2])
def test_an_end_that_counts_otherwise_is_refused(states: int) -> None:
    one = written(1, end=False)
    end = msgpack.packb([states, hashlib.sha256().digest()])
    with pytest.raises(CorruptError, match="not those that were written"):
        read(one + head_of(DONE, end, 0, bytes(16)) + end)


def test_nothing_comes_after_the_end() -> None:
    with pytest.raises(LayoutError, match="trail"):
        read(written(1) + b"x")


def test_a_record_that_was_taken_out_is_missed() -> None:
    data, first = written(1, 2), written(1, end=False)
    start = len(written(end=False))
    with pytest.raises(CorruptError):
        read(data[:start] + data[len(first) :])


def fields_of(number: int = 1) -> dict[str, Any]:
    return msgpack.unpackb(pack_entry(an_entry(number)))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tokens": -1}, LayoutError),
        ({"tokens": True}, LayoutError),
        ({"tokens": 2**63}, LayoutError),
        ({"hits": 1.0}, LayoutError),
        ({"key": b"short"}, LayoutError),
        ({"key": b"x" * 33}, LimitError),
        ({"fingerprint": "text"}, LayoutError),
        ({"role": "king"}, LayoutError),
        ({"score": float("nan")}, LayoutError),
        ({"cost_s": float("inf")}, LayoutError),
        ({"expires_at": "never"}, LayoutError),
        ({"pinned": 1}, LayoutError),
        ({"labels": {"a": 1}}, LayoutError),
        ({"labels": {1: "a"}}, LayoutError),
        ({"labels": ["a"]}, LayoutError),
        ({"labels": {"b": "", "a": ""}}, LayoutError),
        ({"labels": {str(i): "" for i in range(1100)}}, LimitError),
        ({"model": "m" * 70_000}, LimitError),
        ({"extra": 1}, LayoutError),
    ],
)
def test_hostile_entries_are_refused(change: dict[str, Any], error: type[ContainerError]) -> None:
    packed = msgpack.packb({**fields_of(), **change})
    with pytest.raises(error):
        parse_entry(packed, 10)
    with pytest.raises(error):
        read(forged(STATE, packed, 0))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x91" * 5000, msgpack.packb([1]), msgpack.packb(5), b"\xdf\xff\xff\xff\xff"],
)
def test_what_spells_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises(ContainerError):
        parse_entry(data, 10)


def test_an_entry_has_one_spelling() -> None:
    packed = pack_entry(an_entry(1))
    tokens = packed.index(b"tokens") + len(b"tokens")
    assert packed[tokens] == 2
    longer = packed[:tokens] + b"\xcc\x02" + packed[tokens + 1 :]
    assert msgpack.unpackb(longer) == msgpack.unpackb(packed)
    with pytest.raises(LayoutError, match="one spelling"):
        parse_entry(longer, 10)


def test_what_no_reader_would_take_is_not_written() -> None:
    many = an_entry(1, labels={str(number): "x" * 300 for number in range(1000)})
    with pytest.raises(LimitError, match="1000 labels"):
        ArchiveWriter.begin(io.BytesIO(), ABOUT).add(many, [b""])
    with pytest.raises(LimitError):
        ArchiveWriter.begin(io.BytesIO(), {"selection": "x" * 70_000})
    assert START.size == 32
