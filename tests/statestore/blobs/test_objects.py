"""Blobs as objects: over S3, a directory and memory; whole or absent, in ranges, in pages."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore

from statestore.blobs.base import BlobInfo
from statestore.blobs.objects import LANES, RANGED_BYTES, WHOLE_BYTES, ObjectBlobs
from statestore.buffers import ALIGNMENT
from statestore.errors import InputError
from tests.checkout import ROOT
from tests.places.s3_servers import KEY_ID, PREFIX, SECRET, S3Server, shared_server
from tests.places.tcp_proxy import Proxy

NAME = "00ff" + "a" * 60 + "-12.0123456789abcdef"
LARGE = 20_000_003  # in parts, in ranges, and no multiple of anything


@pytest.fixture(scope="module")
def server() -> S3Server:
    return shared_server()


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.create_bucket()


@pytest.fixture(params=["s3", "directory", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectBlobs:
    if request.param == "s3":
        server = request.getfixturevalue("server")
        return server.open(request.getfixturevalue("bucket"))
    store = LocalStore(tmp_path) if request.param == "directory" else MemoryStore()
    return ObjectBlobs(store, request.param)


def content(size: int) -> bytes:
    return hashlib.shake_128(str(size).encode()).digest(size)


@pytest.mark.parametrize("size", [0, 1, 63, 100_000, LARGE])
@pytest.mark.parametrize("limited", [False, True])
def test_round_trip(blobs: ObjectBlobs, size: int, limited: bool) -> None:
    whole = content(size)
    blobs.put(NAME, [whole[:100], bytearray(whole[100:5000]), memoryview(whole)[5000:]])
    blob = blobs.get(NAME, limit_bytes=size + 1 if limited else None)
    assert blob == whole
    assert blob is not None
    assert not blob.readonly
    if size:  # nothing lies nowhere
        assert np.frombuffer(blob, np.uint8).ctypes.data % ALIGNMENT == 0
    assert blobs.size(NAME) == size
    assert [(info.name, info.size_bytes) for info in blobs.list()] == [(NAME, size)]


def test_sizes_here_are_on_either_side_of_the_limits() -> None:
    assert 100_000 < min(WHOLE_BYTES, RANGED_BYTES) <= max(WHOLE_BYTES, RANGED_BYTES) < LARGE


@given(parts=st.lists(st.binary(max_size=300), max_size=5), limit=st.none() | st.integers(0, 2000))
def test_any_buffers_and_limits(parts: list[bytes], limit: int | None) -> None:
    blobs = ObjectBlobs(MemoryStore(), "memory")
    blobs.put(NAME, parts)
    assert blobs.get(NAME, limit_bytes=limit) == b"".join(parts)[:limit]


def test_buffers_of_numbers(blobs: ObjectBlobs) -> None:
    numbers = np.arange(6, dtype="<f4").reshape(2, 3)
    blobs.put(NAME, [memoryview(numbers), memoryview(b""), numbers.T.copy().data])
    assert blobs.get(NAME) == numbers.tobytes() + numbers.T.tobytes()


@pytest.mark.parametrize(
    "limit", [1, 1000, RANGED_BYTES, RANGED_BYTES + 1, LARGE - 1, LARGE, 10**9]
)
def test_a_limit_cuts(blobs: ObjectBlobs, limit: int) -> None:
    blobs.put(NAME, [content(LARGE)])
    assert blobs.get(NAME, limit_bytes=limit) == content(LARGE)[:limit]


def test_what_is_not_there(blobs: ObjectBlobs) -> None:
    assert blobs.get(NAME) is None
    assert blobs.get(NAME, limit_bytes=LARGE) is None
    assert blobs.size(NAME) is None
    assert list(blobs.list()) == []
    blobs.delete(NAME)


def test_delete(blobs: ObjectBlobs) -> None:
    blobs.put(NAME, [b"1"])
    assert blobs.delete(NAME)
    assert blobs.get(NAME) is None


def test_many_are_removed_several_at_a_time(server: S3Server, bucket: str) -> None:
    names = [f"{number:04d}" for number in range(300)]
    direct = server.open(bucket)
    for name in [*names, NAME]:
        server.path(bucket, name).parent.mkdir(parents=True, exist_ok=True)
        server.path(bucket, name).write_bytes(b"1")
    with Proxy(server.port) as proxy:
        server.open(bucket, endpoint=proxy.endpoint).delete_many([*names, "gone"])
        assert proxy.connections > 1
    assert [info.name for info in direct.list()] == [NAME]
    direct.delete_many([])
    with pytest.raises(InputError, match="unlawful"):
        direct.delete_many([NAME, "../x"])
    assert server.objects(bucket) == {NAME}


def test_many_are_removed_elsewhere(blobs: ObjectBlobs) -> None:
    blobs.put(NAME, [b"1"])
    blobs.put("00", [b"1"])
    blobs.delete_many([NAME, "00"])
    assert list(blobs.list()) == []


@pytest.mark.parametrize("name", ["", "a", "../x", "A" * 10, "ab/cd", "x" * 129])
def test_unlawful_names(blobs: ObjectBlobs, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: blobs.put(name, [b"1"]),
        lambda: blobs.get(name),
        lambda: blobs.size(name),
        lambda: blobs.delete(name),
    ]
    for call in calls:
        with pytest.raises(InputError, match="unlawful"):
            call()


def test_a_listing_has_pages_and_times(server: S3Server, bucket: str) -> None:
    blobs = server.open(bucket)
    blobs.put(NAME, [b"12345"])
    names = {f"{number:04d}" for number in range(2500)}
    for name in names:
        server.path(bucket, name).write_bytes(b"1")
        os.utime(server.path(bucket, name), (1e9 + int(name), 1e9 + int(name)))
    server.path(bucket, "Not-A-Blob").write_bytes(b"1")
    (server.path(bucket, "deeper") / "00").parent.mkdir()
    (server.path(bucket, "deeper") / "00").write_bytes(b"1")
    (server.data / bucket / "elsewhere").write_bytes(b"1")
    found = {info.name: info for info in blobs.list()}
    assert found.keys() == names | {NAME}
    assert found["2000"] == BlobInfo("2000", 1, 1e9 + 2000)
    assert abs(found[NAME].modified_at - time.time()) < 60


def test_a_large_blob_is_read_on_several_connections(server: S3Server, bucket: str) -> None:
    server.open(bucket).put(NAME, [content(LARGE)])
    with Proxy(server.port) as proxy:
        blobs = server.open(bucket, endpoint=proxy.endpoint)
        assert blobs.get(NAME, limit_bytes=LARGE + 1) == content(LARGE)
        assert 1 < proxy.connections <= LANES


def test_a_blob_that_is_removed_between_its_ranges_is_a_miss(server: S3Server, bucket: str) -> None:
    """Unlike a file that is open, an object does not outlive its name."""
    blobs, evictor = server.open(bucket), server.open(bucket)
    blobs.put(NAME, [content(LARGE)])
    fetch = blobs._range

    def fetch_then_remove(name: str, begin: int, end: int) -> object:
        result = fetch(name, begin, end)
        if begin == 0:
            evictor.delete(name)
        return result

    blobs._range = fetch_then_remove  # type: ignore[method-assign,assignment]
    assert blobs.get(NAME, limit_bytes=LARGE + 1) is None


def test_a_server_that_knows_no_ranges(server: S3Server, bucket: str) -> None:
    server.open(bucket).put(NAME, [content(LARGE)])
    with Proxy(server.port, replaced=(b"206 Partial Content", b"200 OK")) as proxy:
        blobs = server.open(bucket, endpoint=proxy.endpoint)
        assert blobs.get(NAME, limit_bytes=LARGE + 1) == content(LARGE)
        assert blobs.get(NAME, limit_bytes=LARGE - 1) == content(LARGE)[:-1]


@pytest.mark.parametrize("left", [0, 1000, LARGE // 2])
def test_a_blob_that_was_cut_short_reads_short(server: S3Server, bucket: str, left: int) -> None:
    blobs = server.open(bucket)
    server.path(bucket, NAME).parent.mkdir(parents=True)
    server.path(bucket, NAME).write_bytes(content(LARGE)[:left])
    assert blobs.get(NAME, limit_bytes=LARGE + 1) == content(LARGE)[:left]


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def ends_well(child: subprocess.Popen[str]) -> bool:
    with child:
        return child.wait(60) == 0


OPEN = """
    import os, sys
    from statestore.blobs.s3 import S3Place
    from statestore.errors import UnavailableError
    bucket, endpoint, key, secret, name = sys.argv[1:]
    options = {"endpoint": endpoint, "region": "r", "access_key_id": key}
    place = S3Place.parse(bucket, {**options, "secret_access_key": secret})
"""


def arguments(server: S3Server, bucket: str, endpoint: str = "") -> list[str]:
    return [f"s3://{bucket}/{PREFIX}", endpoint or server.endpoint, KEY_ID, SECRET, NAME]


def test_a_writer_that_is_killed_leaves_nothing_under_the_name(
    server: S3Server, bucket: str
) -> None:
    code = (
        OPEN
        + """
    blobs = place.open()
    print("writing", flush=True)
    blobs.put(name, [bytes(40_000_000)])
    """
    )
    with Proxy(server.port, bytes_per_s=1e6) as proxy:  # of each of the upload's four connections
        for patience_s in (0.0, 0.5, 2.5):
            with run(code, *arguments(server, bucket, proxy.endpoint)) as child:
                assert child.stdout is not None
                child.stdout.readline()
                time.sleep(patience_s)  # somewhere in the upload, which takes ten seconds
                child.send_signal(signal.SIGKILL)
            assert server.open(bucket).get(NAME) is None
            assert server.objects(bucket) == set()
    assert list(server.open(bucket).list()) == []


def test_a_child_may_be_the_first_to_use_it(server: S3Server, bucket: str) -> None:
    code = (
        OPEN
        + """
    if os.fork():
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    blobs = place.open()
    blobs.put(name, [b"from a child"])
    os._exit(blobs.get(name) != b"from a child")
    """
    )
    assert ends_well(run(code, *arguments(server, bucket)))


def test_a_child_of_one_who_used_it_is_told_so(server: S3Server, bucket: str) -> None:
    code = (
        OPEN
        + """
    blobs = place.open()
    if os.fork():
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
    for call in (lambda: blobs.get(name), lambda: blobs.put(name, [b"1"]), place.open,
                 lambda: next(blobs.list(), None)):
        try:
            call()
        except UnavailableError as error:
            assert "after the fork" in str(error)
        else:
            os._exit(1)
    os._exit(0)
    """
    )
    assert ends_well(run(code, *arguments(server, bucket)))
