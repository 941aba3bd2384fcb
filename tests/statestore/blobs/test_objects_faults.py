"""An object store that fails: every call ends in time, in the right error, without its secrets."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from statestore import open_store
from statestore.backends.sql.fleet import FleetPlace
from statestore.blobs.objects import WHOLE_BYTES, ObjectBlobs
from statestore.blobs.s3 import S3Place
from statestore.errors import (
    BackendError,
    ContainerError,
    CorruptError,
    FullError,
    SettingsError,
    UnavailableError,
)
from statestore.settings import StoreURL
from tests.places.backend_places import a_key, an_entry, publish
from tests.places.postgres_servers import SECRET as DATABASE_SECRET
from tests.places.s3_servers import KEY_ID, SECRET, ObjectPlace, S3Server
from tests.places.small_disks import mounted_tmpfs
from tests.places.tcp_proxy import Proxy

NAME = "00ff" + "a" * 60 + "-12.0123456789abcdef"
OTHER = "11" + NAME
LARGE = bytes(WHOLE_BYTES + 1)
HANG_S = 30.0  # far beyond what any call here may take

CALLS: dict[str, Callable[[ObjectBlobs], object]] = {
    "get": lambda blobs: blobs.get(NAME),
    "get, large": lambda blobs: blobs.get(NAME, limit_bytes=len(LARGE)),
    "put": lambda blobs: blobs.put(OTHER, [b"1"]),
    "put, large": lambda blobs: blobs.put(OTHER, [LARGE]),
    "size": lambda blobs: blobs.size(NAME),
    "delete": lambda blobs: blobs.delete(NAME),
    "delete many": lambda blobs: blobs.delete_many([NAME] * 100),
    "list": lambda blobs: list(blobs.list()),
}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    """One that may be stopped: not the shared one."""
    server = S3Server()
    server.start()
    yield server
    server.remove()


@pytest.fixture
def bucket(server: S3Server) -> str:
    return server.create_bucket()


def failure(call: Callable[[], object]) -> BackendError:
    """The error in which `call` ends, in time, with no secret in what it says."""
    began = time.monotonic()
    with pytest.raises((BackendError, ContainerError)) as caught:
        call()
    assert time.monotonic() - began < HANG_S
    told = "".join(traceback.format_exception(caught.value))
    assert SECRET not in told
    assert KEY_ID not in told
    return caught.value


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_is_down(
    server: S3Server, bucket: str, call: Callable[[ObjectBlobs], object]
) -> None:
    blobs = server.open(bucket)
    blobs.put(NAME, [b"kept"])
    server.stop()
    assert isinstance(failure(lambda: call(blobs)), UnavailableError)
    assert isinstance(failure(lambda: server.open(bucket)), UnavailableError)
    server.start()
    assert blobs.get(NAME) == b"kept"


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_is_silent(
    server: S3Server, bucket: str, call: Callable[[ObjectBlobs], object]
) -> None:
    patient = server.open(bucket)
    patient.put(NAME, [LARGE])
    blobs = server.open(bucket, blobs_timeout_s="0.3")
    server.pause()
    try:
        error = failure(lambda: call(blobs))
    finally:
        server.resume()
    assert isinstance(error, UnavailableError)
    assert "no answer in time" in str(error)
    assert patient.get(NAME, limit_bytes=len(LARGE)) in (LARGE, None)  # what was asked may be done


@pytest.mark.parametrize("name", ["get", "get, large", "put, large"])
def test_a_server_that_trickles(server: S3Server, bucket: str, name: str) -> None:
    """Never silent for long, and yet not to be waited for."""
    server.open(bucket).put(NAME, [LARGE])
    with Proxy(server.port, bytes_per_s=60_000) as proxy:
        blobs = server.open(bucket, endpoint=proxy.endpoint, blobs_timeout_s="0.4")
        assert isinstance(failure(lambda: CALLS[name](blobs)), UnavailableError)


@pytest.mark.parametrize("name", ["get", "get, large"])
def test_a_connection_that_breaks_in_an_answer(server: S3Server, bucket: str, name: str) -> None:
    server.open(bucket).put(NAME, [LARGE])
    with Proxy(server.port, cut_after=200_000) as proxy:
        blobs = server.open(bucket, endpoint=proxy.endpoint)
        assert isinstance(failure(lambda: CALLS[name](blobs)), UnavailableError)


@pytest.mark.parametrize("asked", [b"PUT ", b"uploads", b"partNumber=2", b"uploadId="])
@pytest.mark.parametrize("blob", [b"small", LARGE], ids=["small", "large"])
def test_a_connection_that_is_reset_within_a_put(
    server: S3Server, bucket: str, blob: bytes, asked: bytes
) -> None:
    """The object is there and whole, or absent; what was asked is tried once more, in time."""
    with Proxy(server.port) as proxy:
        blobs = server.open(bucket, endpoint=proxy.endpoint)
        proxy.loses_answer_to = asked
        outcome: BackendError | None = None
        try:
            blobs.put(NAME, [blob])
        except UnavailableError as error:
            outcome = error
        met = proxy.loses_answer_to is None
        assert met == (asked == b"PUT " or blob is LARGE)
        found = server.open(bucket).get(NAME)
        assert found == blob or (found is None and outcome is not None)
        blobs.put(OTHER, [blob])
        assert blobs.get(OTHER) == blob


@pytest.mark.parametrize("name", ["get", "get, large", "size", "list"])
def test_connections_that_lead_nowhere_any_more(server: S3Server, bucket: str, name: str) -> None:
    """Idle ones, which a firewall has forgotten: no refusal comes, and no answer."""
    with Proxy(server.port) as proxy:
        blobs = server.open(bucket, endpoint=proxy.endpoint, blobs_timeout_s="2")
        server.open(bucket).put(NAME, [LARGE])
        CALLS[name](blobs)
        proxy.lose()
        began = time.monotonic()
        assert "no answer in time" in str(failure(lambda: CALLS[name](blobs)))
        assert time.monotonic() - began < HANG_S
        CALLS[name](blobs)  # by new ones


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_bucket_that_has_gone_is_no_miss(
    server: S3Server, bucket: str, call: Callable[[ObjectBlobs], object]
) -> None:
    blobs = server.open(bucket)
    shutil.rmtree(server.data / bucket)
    for error in (failure(lambda: call(blobs)), failure(lambda: server.open(bucket))):
        assert isinstance(error, UnavailableError)
        assert "no such bucket" in str(error)
        assert bucket in str(error)


@pytest.mark.parametrize(
    "wrong", [{"secret_access_key": "s3cret-wrong"}, {"access_key_id": "NOBODY"}]
)
def test_wrong_credentials(server: S3Server, bucket: str, wrong: dict[str, str]) -> None:
    error = failure(lambda: server.open(bucket, **wrong))
    assert isinstance(error, UnavailableError)
    assert "look at the credentials" in str(error)
    assert not any(value in str(error) for value in wrong.values())


@contextmanager
def answering(status: int, code: str) -> Iterator[str]:
    """The endpoint of a server that gives everybody this answer, and quotes what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = f"<Error><Code>{code}</Code><Message>as told</Message>"
            body += f"<CanonicalRequest>{self.headers}</CanonicalRequest></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the base class wants them

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (507, "XMinioStorageFull", FullError),
        (507, "Odd", FullError),
        (403, "QuotaExceeded", FullError),
        (400, "XMinioAdminBucketQuotaExceeded", FullError),
        (403, "InvalidObjectState", CorruptError),
        (403, "AccessDenied", UnavailableError),
        (404, "NoSuchBucket", UnavailableError),
        (500, "InternalError", UnavailableError),
        (503, "SlowDown", UnavailableError),
    ],
)
def test_what_a_server_says(
    server: S3Server, status: int, code: str, kind: type[Exception]
) -> None:
    token = "t0ken/of+the=session"
    with answering(status, code) as endpoint:
        options = server.options("bucket", endpoint=endpoint, session_token=token)
        place = S3Place.parse("s3://bucket", options)
        error = failure(place.open)
        assert type(error) is kind
        assert f"{code}: as told" in str(error) or code == "NoSuchBucket"
        assert token not in "".join(traceback.format_exception(error))


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """The server says no more than that it failed; what was there stays."""
    with mounted_tmpfs(tmp_path / "data", "8m"):
        server = S3Server(tmp_path)
        server.start()
        try:
            blobs = server.open(server.create_bucket())
            blobs.put("00", [b"kept"])
            assert isinstance(failure(lambda: blobs.put(NAME, [LARGE])), BackendError)
            assert blobs.get(NAME) is None
            assert blobs.get("00") == b"kept"
        finally:
            server.stop()


# The whole store


@pytest.fixture
def place(tmp_path: Path, server: S3Server) -> Iterator[ObjectPlace]:
    place = ObjectPlace(tmp_path / "store", server)
    yield place
    place.drop()


def test_a_fleets_store_goes_on_without_its_bucket(place: ObjectPlace, server: S3Server) -> None:
    """Misses and dropped puts while it is silent; hits when it is back. No error, no wait."""
    place.s3 = server
    with closing(place.open()) as backend:
        entry = an_entry(0)
        assert publish(backend, entry)
        server.stop()
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            backend.read(entry)
        with pytest.raises(UnavailableError):
            publish(backend, an_entry(1))
        assert time.monotonic() - began < HANG_S
        assert backend.longest([a_key(1)], 0.0) is None  # no entry without its blob
        server.start()
        assert backend.read(entry) is not None
        assert publish(backend, an_entry(1))


def test_an_eviction_waits_once_for_a_silent_server(place: ObjectPlace, server: S3Server) -> None:
    with closing(place.open()) as patient:
        for number in range(40):
            assert publish(patient, an_entry(number, blob_bytes=1))
        place.url += "&blobs_timeout_s=1"
        with closing(place.open()) as backend:
            server.pause()
            try:
                began = time.monotonic()
                assert backend.evict(0, 0.0).entries == 40
                took = time.monotonic() - began
            finally:
                server.resume()
        assert took < 20  # and not 40 times a second
        assert patient.usage().entries == 0
        patient.sweep(time.time() + 1000, 0.0)
        assert place.blob_names() == set()


def test_the_url_has_no_secret_and_opens_the_place_again(
    place: ObjectPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = f"{place.url}&blobs_timeout_s=7.5&session_token=t0ken"
    parsed = FleetPlace.parse(given)
    for shown in (
        parsed.url,
        repr(parsed),
        str(StoreURL.parse(given)),
        repr(StoreURL.parse(given)),
    ):
        assert "s3cret" not in shown.replace(quote(DATABASE_SECRET), "")
        assert "t0ken" not in shown
    assert isinstance(parsed.blobs, S3Place)
    assert parsed.blobs.secret_access_key == SECRET
    again = FleetPlace.parse(parsed.url).blobs
    assert isinstance(again, S3Place)
    assert again.options == parsed.blobs.options
    assert again.options["blobs_timeout_s"] == "7.5"
    monkeypatch.setenv("PGPASSWORD", DATABASE_SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with open_store(FleetPlace.parse(place.url).url) as store:
        assert store.usage().entries == 0


def test_a_plus_in_a_secret_need_not_be_escaped(server: S3Server, bucket: str) -> None:
    assert "+" in SECRET
    assert server.open(bucket, secret_access_key=SECRET.replace("+", " ")).get(NAME) is None


@pytest.mark.parametrize(
    ("blobs", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3://KEEPER:s3cret@bucket", "names no bucket"),
        ("s3://bucket/../up", "names no bucket"),
        ("s3://bucket/a//b", "names no bucket"),
        ("s3://bucket&endpoint=localhost:9000", "endpoint is to be like"),
        ("s3://bucket&endpoint=http://KEEPER:s3cret@h", "endpoint is to be like"),
        ("s3://bucket&endpoint=http://h:port", "endpoint is to be like"),
        ("s3://bucket&secret_access_key=s3cret", "go together"),
        ("s3://bucket&access_key_id=KEEPER", "go together"),
        ("s3://bucket&blobs_timeout_s=0", "blobs_timeout_s='0'"),
        ("s3://bucket&blobs_timeout_s=nan", "blobs_timeout_s='nan'"),
        ("s3://bucket&bucket=b", "unknown option 'bucket'"),
        ("file:///b&region=r", "region is for blobs=s3://"),
    ],
)
def test_a_bad_url_is_named_without_its_secret(blobs: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        open_store(f"postgresql+psycopg://u:pw@127.0.0.1:1/d?blobs={blobs}")
    told = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in told
    assert "KEEPER" not in told


def test_a_missing_driver_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(SettingsError, match=r"pip install 'rwkv-statestore\[s3\]'"):
        S3Place.parse("s3://bucket", {}).open()


def test_the_driver_is_loaded_by_those_who_use_it() -> None:
    code = "import sys, statestore.backends.sql.fleet; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
