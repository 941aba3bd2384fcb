"""Which codec suits a place: the pure choice, and stores that measure as they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statestore import open_store
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.wrappers.recoded import Recoded
from statestore.codec import read_header
from statestore.codec.auto import AutoCodec, Speeds, faster
from statestore.entry import Role
from statestore.errors import SettingsError
from statestore.keys import StateKey
from statestore.schema import DType, State, Tensor
from statestore.store import Identity, StateStore
from tests.statestore.codec.codec_samples import FINGERPRINT, TOKENS, assert_same

IDENTITY = Identity(FINGERPRINT)
rates = st.floats(1e6, 1e11)


def large_state() -> State:
    words = np.random.default_rng(0).standard_normal(100_000, "f4")
    return State("s", (Tensor.of("t", DType.F32, words.shape, words),))


@pytest.mark.parametrize(
    ("read", "write", "wanted"),
    [
        (None, None, "lossless"),
        (None, 1e8, "lossless"),
        (100e6, 100e6, "lossless"),  # a network
        (5e9, 1e9, "raw"),  # the page cache
        (20e9, 20e9, "raw"),  # memory
        (5e9, 1e6, "lossless"),  # writes so slow that they outweigh
    ],
)
def test_slow_places_get_fewer_bytes(read: float | None, write: float | None, wanted: str) -> None:
    assert faster(Speeds(read, write)) == wanted


@given(slow=rates, times=st.floats(1, 1000), decode=rates)
def test_a_faster_place_never_turns_from_raw_to_lossless(
    slow: float, times: float, decode: float
) -> None:
    if faster(Speeds(slow, decode=decode)) == "raw":
        assert faster(Speeds(slow * times, decode=decode)) == "raw"


@given(read=rates, slow=rates, times=st.floats(1, 1000))
def test_a_faster_codec_never_turns_from_lossless_to_raw(
    read: float, slow: float, times: float
) -> None:
    if faster(Speeds(read, decode=slow)) == "lossless":
        assert faster(Speeds(read, decode=slow * times)) == "lossless"


def test_measurements_follow_a_place_that_changes() -> None:
    auto = AutoCodec()
    assert auto.choose() == "lossless"
    for _ in range(50):
        auto.note_read(10_000_000, 0.001)
    assert auto.choose() == "raw"
    for _ in range(50):
        auto.note_read(10_000_000, 0.1)
    assert auto.choose() == "lossless"
    assert auto.speeds.read == pytest.approx(1e8, rel=0.1)


def test_small_transfers_say_nothing() -> None:
    auto = AutoCodec()
    auto.note_read(1000, 1.0)
    auto.note_write(1000, 1.0)
    auto.note_codec(1000, 1000, 1.0, 1.0)
    assert auto.speeds == Speeds()
    assert not auto.knows_codec


def codec_of(store: StateStore, key: StateKey) -> str:
    (entry,) = (entry for entry in store.list() if entry.key == key)
    blob = store.backend.read(entry)
    return "raw" if read_header(blob).frames[0].codec == "raw" else "lossless"


def put(store: StateStore, number: int) -> StateKey:
    key = StateKey(bytes([number]) * 32, number)
    store.put(IDENTITY, key, large_state(), token_digest=TOKENS, role=Role.SEGMENT)
    return key


def test_a_store_chooses_by_what_it_has_measured() -> None:
    auto = AutoCodec()
    with StateStore(Recoded(MemoryBackend("", None), auto), codec_name="raw") as store:
        first = put(store, 1)
        assert codec_of(store, first) == "lossless"  # reads were not measured then
        assert auto.knows_codec
        assert auto.speeds.write is not None
        for _ in range(100):
            auto.note_read(1 << 30, 0.001)
        second = put(store, 2)
        assert codec_of(store, second) == "raw"
        for _ in range(100):
            auto.note_read(1 << 30, 100_000.0)
        assert codec_of(store, put(store, 3)) == "lossless"
        for key in (first, second):
            found = store.get(IDENTITY, key)
            assert found is not None
            assert_same(found.state, large_state())


def test_the_url_says_auto(tmp_path: Path) -> None:
    place = (tmp_path / "store").as_uri()
    for url in (f"{place}?codec=auto", f"memory: {place}?codec=auto"):
        with open_store(url) as store:
            key = put(store, 4)
            store.flush()
            assert store.get(IDENTITY, key) is not None
    with pytest.raises(SettingsError, match="codec is one of raw, lossless, auto"):
        open_store(f"{place}?codec=zip")
