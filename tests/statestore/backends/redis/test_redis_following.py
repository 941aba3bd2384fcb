"""States from Redis that are decoded while they arrive: over a slow line, and when it breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from statestore import Identity, PutOutcome, Role, StateStore, codec, open_store
from statestore.backends.base import read_followed
from statestore.entry import Entry
from statestore.errors import ContainerError, UnavailableError
from statestore.schema import DType, State, Tensor
from tests.places.backend_places import CREATED_AT, a_key, digest
from tests.places.redis_places import PART, RedisPlace
from tests.places.redis_servers import RedisServer, running, running_cluster
from tests.places.tcp_proxy import Proxy
from tests.statestore.codec.test_following import large_state

IDENTITY = Identity(digest("model"))
KEY = a_key(7)
LIMITS = codec.Limits()
PATIENT = "find_ms=30000&fetch_ms=60000&timeout_s=30&connect_timeout_s=10"
SLOW = 40e6  # bytes a second: a frame comes in twenty times what it takes to decode it
HANG_S = 60.0


class Watching(codec.Following):
    """Does something once, when so many bytes have come."""

    def __init__(self, entry: Entry, at: int, action: Callable[[], object]) -> None:
        super().__init__(entry.blob_bytes, LIMITS)
        self._at, self._action = at, action
        self.tries = 0

    def begin(self, buffer: memoryview) -> None:
        self.tries = getattr(self, "tries", 0) + bool(buffer)
        super().begin(buffer)

    def came(self, count: int) -> None:
        super().came(count)
        if count >= self._at:
            self._at = 1 << 62
            self._action()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[StateStore]:
    with open_store(f"{server.url}?{PATIENT}") as store:
        yield store


def huge_state() -> State:
    """12 MB: of its ten parts four are on their way at a time."""
    words = np.random.default_rng(5).normal(size=3_000_000).astype("<f4")
    return State("rwkv-test/1", (Tensor.of("x", DType.F32, words.shape, words),))


def put(store: StateStore, state: State) -> Entry:
    outcome = store.put(
        IDENTITY, KEY, state, token_digest=bytes(32), role=Role.PROMPT, durable=True
    )
    assert outcome is PutOutcome.PUBLISHED
    return entry_of(store)


def entry_of(store: StateStore) -> Entry:
    """Looked up, so that a connection is open."""
    entry = store.backend.longest([KEY], CREATED_AT)
    assert entry is not None
    return entry


def part_name(server: RedisServer, entry: Entry, index: int) -> str:
    return RedisPlace(server.url, [server], "statestore").name(entry.blob, index)


def follow(store: StateStore, entry: Entry) -> tuple[State, int]:
    """The state, read and followed; how many frames were decoded on the way."""
    following = codec.Following(entry.blob_bytes, LIMITS)
    blob = read_followed(store.backend, entry, following)
    assert blob is not None
    return following.decode(blob)[1], following.decoded


@pytest.mark.parametrize("name", codec.CODEC_NAMES)
def test_frames_are_decoded_while_others_come(server: RedisServer, name: str) -> None:
    with Proxy(server.port, bytes_per_s=SLOW) as proxy:
        direct = open_store(f"{server.url}?{PATIENT}&codec={name}")
        slow = open_store(f"redis://127.0.0.1:{proxy.port}?{PATIENT}&codec={name}")
        with direct, slow:
            entry = put(direct, large_state())
            entry_of(slow)
            threads = set(threading.enumerate())
            for _ in range(2):
                state, decoded = follow(slow, entry)
                assert state == large_state()
                assert (decoded > 0) == (name == "lossless")
            assert set(threading.enumerate()) <= threads | codec_helpers()


def codec_helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "statestore-codec"}


@pytest.mark.parametrize("options", ["budget=1GiB&policy=lfu", "codec=auto", "find_ms=0"])
@pytest.mark.parametrize("nearer", ["", "memory: "])
def test_it_passes_what_changes_no_byte(server: RedisServer, options: str, nearer: str) -> None:
    with Proxy(server.port, bytes_per_s=SLOW) as proxy, open_store(server.url) as direct:
        entry = put(direct, large_state())
        given = options if "find_ms" in options else f"{options}&{PATIENT}"
        url = f"{nearer}redis://127.0.0.1:{proxy.port}?{given}"
        with open_store(url) as store:
            state, decoded = follow(store, entry_of(store))
            assert state == large_state()
            assert decoded > 0
            found = store.find(IDENTITY, [a_key(8), KEY])
            assert found is not None
            assert found.entry.blob == entry.blob
            assert found.state == large_state()


def test_what_is_encrypted_is_not_followed(server: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("ab" * 32 + "\n")
    (tmp_path / "keys").chmod(0o600)
    with open_store(f"{server.url}?keys={tmp_path / 'keys'}&{PATIENT}") as store:
        entry = put(store, large_state())
        watching = Watching(entry, 0, lambda: pytest.fail("told of it"))
        assert read_followed(store.backend, entry, watching) is not None
        assert watching.tries == 0
        found = store.find(IDENTITY, [KEY])
        assert found is not None
        assert found.state == large_state()


def test_a_server_killed_in_the_middle(server: RedisServer, store: StateStore) -> None:
    entry = put(store, huge_state())
    watching = Watching(entry, PART, server.stop)
    threads = set(threading.enumerate())
    with pytest.raises(UnavailableError):
        read_followed(store.backend, entry, watching)
    assert watching.tries >= 1
    assert {t for t in threading.enumerate() if "decode" in t.name} <= threads
    assert store.find(IDENTITY, [KEY]) is None


def test_a_server_that_stops_in_the_middle_costs_the_deadline(server: RedisServer) -> None:
    with open_store(f"{server.url}?{PATIENT.replace('60000', '500')}") as store:
        entry = put(store, huge_state())
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="Timeout"):
            read_followed(store.backend, entry, Watching(entry, PART, server.pause))
        assert time.monotonic() - began < 20
        server.go_on()
    with open_store(f"{server.url}?{PATIENT}") as store:
        assert follow(store, entry_of(store))[0] == huge_state()


def test_a_deadline_in_the_middle_of_a_slow_one(
    server: RedisServer, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, huge_state())
    followed: list[codec.Following] = []

    class Kept(codec.Following):
        def __init__(self, size: int, limits: codec.Limits) -> None:
            super().__init__(size, limits)
            followed.append(self)

    monkeypatch.setattr(codec, "Following", Kept)
    with Proxy(server.port, bytes_per_s=4e6) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}?{PATIENT.replace('60000', '800')}"
        with open_store(url) as slow:
            began = time.monotonic()
            assert slow.find(IDENTITY, [KEY]) is None
            assert time.monotonic() - began < 20
            assert slow.metrics.value("errors_total", operation="find") == 1
    assert followed[0].decoded > 0


def test_a_connection_cut_in_the_middle_is_made_anew(
    server: RedisServer, store: StateStore
) -> None:
    entry = put(store, huge_state())

    def cut() -> None:
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)

    backend = open_store(f"{server.url}?find_ms=0&timeout_s=30").backend
    assert backend.longest([KEY], CREATED_AT) == entry
    watching = Watching(entry, PART, cut)
    blob = read_followed(backend, entry, watching)
    backend.close()
    assert watching.tries == 2
    assert blob is not None
    assert watching.decode(blob)[1] == huge_state()


def test_a_part_that_goes_in_the_middle(server: RedisServer, store: StateStore) -> None:
    entry = put(store, huge_state())

    def remove() -> None:
        with server.client() as client:
            assert client.delete(part_name(server, entry, 8)) == 1

    assert read_followed(store.backend, entry, Watching(entry, PART, remove)) is None
    assert store.find(IDENTITY, [KEY]) is None
    assert store.metrics.value("quarantined_total", cause="Missing") == 1


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("short", [1, PART // 2, PART - 1])
def test_a_part_that_is_too_short(
    server: RedisServer, store: StateStore, index: int, short: int
) -> None:
    entry = put(store, large_state())
    name = part_name(server, entry, index)
    with server.client() as client:
        part: bytes = client.get(name)  # type: ignore[assignment]
        client.set(name, part[: max(1, len(part) - short)])
    assert_same_error(store, entry)


def test_a_changed_byte_in_each_frame(server: RedisServer, store: StateStore) -> None:
    entry = put(store, large_state())
    blob = store.backend.read(entry)
    assert blob is not None
    for i, frame in enumerate(codec.read_header(blob).frames):
        at = frame.offset + frame.length // 2
        name = part_name(server, entry, at // PART)
        with server.client() as client:
            client.setrange(name, at % PART, bytes([blob[at] ^ 1]))
            assert f"frame {i} is damaged" in assert_same_error(store, entry)
            client.setrange(name, at % PART, bytes([blob[at]]))
    assert follow(store, entry)[0] == large_state()
    with server.client() as client:
        client.setrange(part_name(server, entry, 0), 200, b"\xff\xff\xff")
    assert store.find(IDENTITY, [KEY]) is None
    assert store.metrics.value("quarantined_total", cause="CorruptError") == 1


def assert_same_error(store: StateStore, entry: Entry) -> str:
    """Following, slow or not, says what decoding the whole blob says."""
    blob = store.backend.read(entry)
    assert blob is not None
    with pytest.raises(ContainerError) as expected:
        codec.decode(blob)
    for pause_s in (0.0, 0.002):
        following = Watching(entry, 1 << 19, lambda: time.sleep(pause_s))  # noqa: B023
        came = read_followed(store.backend, entry, following)
        assert came is not None
        with pytest.raises(type(expected.value)) as met:
            following.decode(came)
        assert str(met.value) == str(expected.value)
    return str(expected.value)


def test_what_is_no_string_has_its_name(server: RedisServer, store: StateStore) -> None:
    entry = put(store, huge_state())
    name = part_name(server, entry, 6)
    with server.client() as client:
        client.delete(name)
        client.rpush(name, "no string")
    backend = open_store(f"{server.url}?find_ms=0&timeout_s=30").backend
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        read_followed(backend, entry, codec.Following(entry.blob_bytes, LIMITS))
    backend.close()


def test_a_cluster_gives_the_same_state() -> None:
    with running_cluster() as nodes:
        url = f"redis+cluster://127.0.0.1:{nodes[0].port}?{PATIENT}"
        with open_store(url) as store:
            entry = put(store, large_state())
            assert follow(store, entry) == (large_state(), 0)
            found = store.find(IDENTITY, [KEY])
            assert found is not None
            assert found.state == large_state()
