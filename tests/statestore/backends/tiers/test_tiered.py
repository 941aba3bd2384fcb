"""Tiers: the contracts over memory ahead of a directory and of Redis; near and far; what is written
behind the requests."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statestore import StateStore, codec, open_store
from statestore.backends.base import Backend, Blob
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.tiers.backend import Tier, Tiered
from statestore.backends.tiers.recent import Recent
from statestore.backends.tiers.write_behind import Bounds
from statestore.backends.wrapper import Wrapper
from statestore.entry import Candidate, Change, Entry, EntryFilter, Status
from statestore.errors import FullError, SettingsError, UnavailableError
from statestore.metrics import Metrics
from tests.places.backend_places import (
    CREATED_AT,
    FilePlace,
    Place,
    TieredPlace,
    a_blob,
    a_key,
    an_entry,
    publish,
)
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import RedisServer, running
from tests.places.states import OURS, a_state, put
from tests.statestore.contracts.test_backend_contract import BackendContract
from tests.statestore.contracts.test_lease_contract import LeaseContract
from tests.statestore.contracts.test_listing_contract import ListingContract

NOW = CREATED_AT + 10_000
WAIT_S = 60.0

names = (f"tier-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


class OverFiles:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        root = tmp_path / "store"
        return TieredPlace(next(names), FilePlace(root), root.as_uri())


class OverRedis:
    @pytest.fixture
    def place(self, server: RedisServer) -> Place:
        home = RedisPlace(server.url, [server], next(names))
        return TieredPlace(next(names), home, f"{home.url}&find_ms=0")


class TieredContract(BackendContract):
    def test_a_judge_is_asked_about_the_home(self, backend: Backend) -> None:
        for number in range(3):
            publish(backend, an_entry(number, blob_bytes=100, score=float(number)))

        def newest(entries: Sequence[Candidate | Entry], _: float) -> list[float]:
            return [-float(entry.key.n_tokens) for entry in entries]

        assert backend.evict(200, NOW, judge=newest).entries == 1
        assert {entry.key for entry in backend.entries(EntryFilter())} == {a_key(0), a_key(1)}

    def same(self, found: Entry | None, entry: Entry) -> bool:
        """Each copy but the home's has a write id of its own; score and memo are its tier's."""
        if found is None:
            return False
        return replace(found, blob=entry.blob, score=entry.score, memo=entry.memo) == entry

    def test_a_blob_that_has_gone_reads_as_none(self, backend: Backend, place: Place) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        place.remove_blob(entry.blob)
        assert backend.read(entry) is None
        near = backend.longest([entry.key], NOW)
        assert near is not None
        assert backend.read(near) == a_blob(entry.key)

    # A copy is barred in its own tier: below.
    test_a_replaced_blob_is_neither_barred_nor_deleted = None
    # The nearest tier's policy writes its own.
    test_a_touch_with_a_memo_that_no_place_keeps = None


class TestTiersOverFiles(OverFiles, TieredContract):
    pass


class TestTiersOverRedis(OverRedis, TieredContract):
    pass


class TestTieredListing(OverFiles, ListingContract):
    pass


class TestTieredLeases(OverFiles, LeaseContract):
    pass


# Near and far


class Gate(Wrapper):
    """A tier that can be held up, and that can fail."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.down = False
        self.asked: list[int] = []  # keys of each lookup
        self.touched: list[float] = []

    def longest(self, keys: Any, now: float) -> Entry | None:
        self.check()
        self.asked.append(len(keys))
        return super().longest(keys, now)

    def read(self, entry: Entry) -> memoryview | None:
        self.check()
        return super().read(entry)

    def publish(self, entry: Entry, blob: Blob, *, durable: bool = False) -> bool:
        self.reached.set()
        assert self.open.wait(WAIT_S)
        self.check()
        return super().publish(entry, blob, durable=durable)

    def touch(self, entry: Entry, now: float, score: float, **given: Any) -> None:
        self.check()
        self.touched.append(score)
        super().touch(entry, now, score, **given)

    def check(self) -> None:
        if self.down:
            raise UnavailableError("down")


class Stack:
    """Three tiers in memory: near, middle and home."""

    def __init__(self, bounds: Bounds | None = None, near_bytes: int | None = None) -> None:
        self.metrics = Metrics()
        self.near, self.middle, self.home = (
            Gate(MemoryBackend("", size)) for size in (near_bytes, None, None)
        )
        tiers = [Tier("near", self.near, lasting_reads=True), Tier("middle", self.middle)]
        tiers.append(Tier("home", self.home))
        self.tiers = Tiered(tiers, bounds=bounds, metrics=self.metrics)

    def found(self, *numbers: int) -> Entry:
        entry = self.tiers.longest([a_key(number) for number in numbers], NOW)
        assert entry is not None
        return entry

    def behind(self, kind: str, outcome: str) -> float:
        return self.metrics.value("write_behind_total", kind=kind, outcome=outcome)


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.home.open.set()
    stack.middle.open.set()
    stack.tiers.close()


def test_the_longest_over_tiers_wins_and_the_nearer_on_a_tie(stack: Stack) -> None:
    publish(stack.near, an_entry(1))
    publish(stack.home, an_entry(2))
    for tier in (stack.near, stack.home):
        publish(tier, an_entry(3))
    assert (stack.found(2, 1).tier, stack.found(2, 1).key) == ("home", a_key(2))
    assert stack.found(1, 0).tier == "near"
    assert stack.found(3, 2).tier == "near"
    assert stack.metrics.value("tier_hits_total", tier="near") == 2


def test_further_tiers_are_asked_for_deeper_keys_alone(stack: Stack) -> None:
    publish(stack.near, an_entry(5))
    stack.found(9, 8, 7, 5, 4)
    assert stack.home.asked == [3]
    stack.found(5, 4)
    assert stack.home.asked == [3]


def test_a_tier_that_fails_is_passed_over(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    publish(stack.home, an_entry(0))
    stack.near.down = stack.middle.down = True
    entry = stack.found(0)
    assert entry.tier == "home"
    assert stack.tiers.read(entry) == a_blob(entry.key)
    assert "find went on without tier near: down" in caplog.text
    stack.home.down = True
    with pytest.raises(UnavailableError):
        stack.tiers.longest([a_key(0)], NOW)


def test_a_put_is_found_at_once_and_reaches_every_tier(stack: Stack) -> None:
    stack.middle.open.clear()
    entry = an_entry(0)
    blob = bytearray(a_blob(entry.key))
    assert stack.tiers.publish(entry, [blob])
    blob[:] = bytes(len(blob))  # the caller has its buffer back
    assert stack.found(0).tier == "near"
    assert not stack.tiers.flush(0.0)
    assert stack.home.longest([entry.key], NOW) is None
    stack.middle.open.set()
    assert stack.tiers.flush(WAIT_S)
    assert stack.home.longest([entry.key], NOW) == entry
    copies = [tier.longest([entry.key], NOW) for tier in (stack.near, stack.middle, stack.home)]
    assert len({copy.blob for copy in copies if copy is not None}) == 3
    assert stack.home.read(entry) == a_blob(entry.key)
    assert stack.metrics.value("write_behind_bytes") == 0


def test_a_durable_put_is_at_home_when_it_returns(stack: Stack) -> None:
    entry = an_entry(0)
    stack.middle.open.clear()
    assert stack.tiers.publish(entry, [a_blob(entry.key)], durable=True)
    assert stack.home.longest([entry.key], NOW) == entry
    assert not stack.tiers.publish(an_entry(0), [a_blob(entry.key)], durable=True)
    stack.home.down = True
    with pytest.raises(UnavailableError):
        stack.tiers.publish(an_entry(1), [a_blob(a_key(1))], durable=True)
    stack.middle.open.set()


def test_what_the_nearest_refuses_goes_further() -> None:
    stack = Stack(near_bytes=10)
    with closing(stack.tiers):
        assert publish(stack.tiers, an_entry(0))
        assert stack.tiers.flush(WAIT_S)
        assert stack.found(0).tier == "middle"


@pytest.mark.parametrize(
    "bounds", [Bounds(tasks=2, patience_s=0.01), Bounds(size_bytes=3500, patience_s=0.01)]
)
def test_a_full_queue_drops_counts_and_recovers(bounds: Bounds) -> None:
    stack = Stack(bounds)
    with closing(stack.tiers):
        stack.middle.open.clear()
        publish(stack.tiers, an_entry(0))
        assert stack.middle.reached.wait(WAIT_S)  # one is being written
        for number in range(1, 6):
            assert publish(stack.tiers, an_entry(number))
        assert stack.behind("put", "dropped") == 3
        assert stack.found(5).tier == "near"
        stack.near.down = True
        with pytest.raises(FullError, match="no tier takes it"):
            publish(stack.tiers, an_entry(6))
        stack.near.down = False
        stack.middle.open.set()
        assert stack.tiers.flush(WAIT_S)
        assert stack.tiers.usage().entries == 3
        assert publish(stack.tiers, an_entry(7))
        assert stack.tiers.usage().entries == 4


def test_a_home_that_is_down_fails_no_put_and_no_find(stack: Stack) -> None:
    stack.home.down = True
    assert publish(stack.tiers, an_entry(0))
    assert stack.tiers.flush(WAIT_S)
    assert stack.behind("put", "failed") == 1
    assert stack.found(0).tier == "near"


def test_a_tier_that_cannot_be_closed_keeps_no_other_open(stack: Stack) -> None:
    closed: list[str] = []
    stack.near.close = lambda: raising(UnavailableError("down"))  # type: ignore[method-assign]
    stack.home.close = lambda: closed.append("home")  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match="down"):
        stack.tiers.close()
    assert closed == ["home"]
    del stack.near.close, stack.home.close


def raising(error: Exception) -> None:
    raise error


def test_a_fork_while_a_blob_is_kept_leaves_the_child_no_lock() -> None:
    recent = Recent()
    with recent._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # ends a child that hangs
            recent.keep("a", memoryview(b"blob"))
            os._exit(0 if recent.take("a") == b"blob" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Hits


def test_a_hit_is_copied_nearer_and_a_mere_read_is_not(stack: Stack) -> None:
    publish(stack.home, an_entry(0, expires_at=NOW + 100))
    entry = stack.found(0)
    stack.tiers.read(entry)
    assert stack.tiers.flush(WAIT_S)
    assert stack.found(0).tier == "home"
    stack.tiers.touch(entry, NOW, NOW)
    assert stack.tiers.flush(WAIT_S)
    near = stack.found(0)
    assert (near.tier, near.used_at, near.expires_at) == ("near", NOW, NOW + 100)
    assert near.blob != entry.blob
    assert stack.tiers.read(near) == a_blob(entry.key)
    assert stack.middle.longest([entry.key], NOW) is not None


def test_a_hit_whose_blob_is_no_longer_at_hand_is_read_again(stack: Stack) -> None:
    publish(stack.home, an_entry(0))
    stack.tiers.touch(stack.found(0), NOW, NOW)
    assert stack.tiers.flush(WAIT_S)
    assert stack.found(0).tier == "near"


def test_a_hit_from_before_there_were_limits_stays_where_it_is(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as before:
        before.setattr("statestore.backends.fields.LABEL_VALUE_BYTES", 9999)
        publish(stack.home, an_entry(0, labels={"title": "t" * 5000}))
    for _ in range(2):
        stack.tiers.touch(stack.found(0), NOW, NOW)
        assert stack.tiers.flush(WAIT_S)
    assert stack.found(0).tier == "home"
    assert stack.home.touched == [NOW, NOW]
    assert caplog.text.count("promote went on without tier near: entry field labels") == 1
    assert "Traceback" not in caplog.text


def test_touches_of_further_tiers_wait_and_the_newest_counts(stack: Stack) -> None:
    publish(stack.tiers, an_entry(0))
    publish(stack.tiers, an_entry(1))
    assert stack.tiers.flush(WAIT_S)
    stack.home.reached.clear()
    stack.home.open.clear()
    publish(stack.tiers, an_entry(2))
    assert stack.home.reached.wait(WAIT_S)
    for score in (1.0, 2.0, 3.0):
        stack.tiers.touch(stack.found(0), NOW, score)
    assert (stack.near.touched, stack.home.touched) == ([1.0, 2.0, 3.0], [])
    stack.home.open.set()
    assert stack.tiers.flush(WAIT_S)
    assert stack.home.touched == [3.0]


# Changes


def test_barring_a_copy_leaves_the_others(stack: Stack) -> None:
    publish(stack.tiers, an_entry(0))
    assert stack.tiers.flush(WAIT_S)
    for tier in ("near", "middle", "home"):
        entry = stack.found(0)
        assert entry.tier == tier
        assert stack.tiers.update(entry.key, Change(status=Status.QUARANTINED), blob=entry.blob)
    assert stack.tiers.longest([a_key(0)], NOW) is None
    assert not stack.tiers.update(a_key(0), Change(status=Status.QUARANTINED), blob="0000.1")


def test_update_and_delete_reach_every_tier_and_what_waits(stack: Stack) -> None:
    publish(stack.tiers, an_entry(0))
    assert stack.tiers.update(a_key(0), Change(pinned=True))
    for tier in (stack.near, stack.middle, stack.home):
        assert [entry.pinned for entry in tier.entries(EntryFilter())] == [True]
    assert stack.tiers.delete(a_key(0), "deleted")
    assert stack.tiers.longest([a_key(0)], NOW) is None
    assert not stack.tiers.delete(a_key(0), "deleted")
    assert stack.tiers.departed([a_key(0)])[a_key(0)].reason == "deleted"


def test_a_delete_that_the_home_did_not_take_is_an_error(stack: Stack) -> None:
    publish(stack.tiers, an_entry(0))
    assert stack.tiers.flush(WAIT_S)
    stack.home.delete = lambda *a, **k: stack.home.check()  # type: ignore[method-assign]
    stack.home.down = True
    with pytest.raises(UnavailableError):
        stack.tiers.delete(a_key(0), "deleted")


def test_a_sweep_goes_everywhere(stack: Stack) -> None:
    publish(stack.tiers, an_entry(0, expires_at=NOW))
    swept = stack.tiers.sweep(NOW, 0.0)
    assert (swept.expired, swept.blobs) == (1, 1)
    for tier in (stack.near, stack.middle, stack.home):
        assert tier.usage().entries == 0


# Through the store


def test_a_tier_that_fails_in_a_fetch_leaves_the_shorter_state_nearer() -> None:
    def down(_entry: Entry) -> memoryview:
        raise UnavailableError("down")

    stack = Stack()
    with StateStore(stack.tiers) as store:
        put(store, 0)
        assert store.flush(WAIT_S)
        with StateStore(stack.home.inner) as home:
            put(home, 1)
            stack.home.read = down  # type: ignore[method-assign]
            found = store.find(OURS, [a_key(1), a_key(0)])
            assert found is not None
            assert (found.entry.key, found.entry.tier) == (a_key(0), "near")
            assert store.metrics.value("errors_total", operation="find") == 1


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    with open_store(f"memory: {tmp_path.as_uri()}") as store:
        put(store, 0)
        assert store.flush(WAIT_S)
        yield store


def test_each_tier_has_its_codec(store: StateStore, tmp_path: Path) -> None:
    state = a_state(0)
    near, home = store.backend._tiers
    [in_memory], [on_disk] = (list(tier.backend.entries(EntryFilter())) for tier in (near, home))
    packed = {}
    for tier, entry in ((near, in_memory), (home, on_disk)):
        blob = tier.backend.read(entry)
        header, decoded = codec.decode(blob)
        assert decoded["t"].data == state["t"].data
        assert len(blob) == entry.blob_bytes
        packed[tier.name] = any(frame.codec != "raw" for frame in header.frames)
    assert packed == {"memory": False, "file": True}


def test_a_damaged_copy_near_does_not_hide_the_sound_one(store: StateStore) -> None:
    near = store.backend._tiers[0].backend
    [entry] = near.entries(EntryFilter())
    unwrapped = getattr(near, "inner", near)
    unwrapped.room().shelf._kept[entry.key.digest].blob = memoryview(b"\x00" * entry.blob_bytes)
    found = store.find(OURS, [a_key(0)])
    assert found is not None
    assert found.entry.tier == "file"
    assert store.usage().quarantined == 0
    assert store.metrics.value("quarantined_total", cause="NotAContainerError") == 1
    assert store.flush(WAIT_S)
    mended = store.find(OURS, [a_key(0)])
    assert mended is not None
    assert mended.entry.tier == "memory"


def test_two_that_come_one_after_the_other_share_the_home(tmp_path: Path) -> None:
    url = f"memory: {tmp_path.as_uri()}"
    with open_store(url) as first:
        put(first, 0)
    with open_store(url) as second:
        found = second.find(OURS, [a_key(0)])
        assert found is not None
        assert found.entry.tier == "file"
        assert found.state["t"].data == a_state(0)["t"].data


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory: ftp://host", "no backend for ftp://"),
        ("memory:?codec=zip file:///tmp/x", "codec is one of"),
        ("memory: redis://:s3cret@host?retries=1", r"\*\*\*@host.*unknown option 'retries'"),
    ],
)
def test_a_bad_tier_is_named(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)
