"""Keys and their namespaces, sizes, times and queues: a server with little room."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from rwkv_runtime.demo.corpus import Document
from tests.runtime.workers.commanded import run
from tests.server.servers import Server, serving, wait_until

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789"
PAGE = "https://app.example"
STREAMS = 8
DOCUMENT_BYTES = 60_000
TAKEN = STREAMS + 2  # one more whose prompt is read, one that waits


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker, two keys."""
    directory = tmp_path_factory.mktemp("small")
    keys = directory / "keys.toml"
    keys.write_text(
        f'[[keys]]\nkey = "{ALICE}"\nnamespace = "alice"\n'
        f'[[keys]]\nkey = "{BOB}"\nnamespace = "bob"\n',
        encoding="utf-8",
    )
    options = {
        "--workers": 1,
        "--streams": STREAMS,
        "--readers": 1,
        "--max-body-bytes": 4000,
        "--max-document-bytes": DOCUMENT_BYTES,
        "--api-keys": keys,
        "--host": "0.0.0.0",
    }
    config = f"""
        [server]
        queue = 1
        readers = 5  # the option above wins
        max_tokens = 50000
        cors_origins = ["{PAGE}"]

        [store.salts]
        alice = "hers"
    """
    arguments = [str(each) for pair in options.items() for each in pair]
    store = (directory / "states").as_uri()
    with serving(*arguments, store=store, config=config) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def address(server: Server) -> tuple[str, int]:
    return "127.0.0.1", int(server.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def slow(small: Server) -> Iterator[socket.socket]:
    """A client that has not sent its headers yet; it comes early, and is looked at late."""
    with socket.create_connection(address(small)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        yield client


@pytest.mark.usefixtures("slow")
def test_without_a_key_nobody_is_let_in(small: Server) -> None:
    client = small.client(key="sk-nobody-0123456789")
    for call in (
        client.models.list,
        lambda: client.completions.create(model="demo", prompt="x"),
        lambda: client.chat.completions.create(model="demo", messages=[]),
    ):
        with pytest.raises(openai.AuthenticationError, match="not known here"):
            call()
    for method, path in (("GET", "/v1/documents"), ("PUT", "/v1/documents"), ("GET", "/v1/store")):
        answer = small.request(method, path)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "no_api_key"
    for path in ("/healthz", "/readyz", "/metrics", "/"):
        assert small.request("GET", path).status_code == 200


def test_namespaces_see_nothing_of_each_other(small: Server, fresh: Document) -> None:
    text = fresh.text[:600]
    put = small.request(
        "PUT", "/v1/documents", json={"text": text, "name": "a secret"}, headers=bearer(ALICE)
    ).json()
    assert (put["cached"], put["tokens"]) == (0, len(text.encode()))
    assert small.request("GET", "/v1/documents", headers=bearer(BOB)).json()["data"] == []
    for method in ("GET", "DELETE"):
        path = f"/v1/documents/{put['id']}"
        assert small.request(method, path, headers=bearer(BOB)).status_code == 404
    body = {"prompt": "x", "documents": [put["id"]]}
    refused = small.request("POST", "/v1/completions", json=body, headers=bearer(BOB))
    assert refused.status_code == 404
    his = small.request("PUT", "/v1/documents", json={"text": text}, headers=bearer(BOB)).json()
    assert his["cached"] == 0
    assert his["id"] != put["id"]
    again = small.request("PUT", "/v1/documents", json={"text": text}, headers=bearer(ALICE)).json()
    assert (again["id"], again["cached"]) == (put["id"], put["tokens"])
    store = small.request("GET", "/v1/store", headers=bearer(ALICE)).json()
    assert store["namespace"] == "alice"
    assert ALICE not in small.log


def test_pages_of_elsewhere_may_ask_where_settings_say_so(small: Server) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    for origin, allowed in ((PAGE, PAGE), ("https://evil.example", None)):
        headers = {"Origin": origin, **asked}
        answer = small.request("OPTIONS", "/v1/chat/completions", headers=headers)
        assert answer.is_success == (allowed is not None)
        assert answer.headers.get("access-control-allow-origin") == allowed
        headers = {"Origin": origin, **bearer(BOB)}
        answer = small.request("GET", "/v1/models", headers=headers)
        assert answer.headers.get("access-control-allow-origin") == allowed
        answer = small.request("POST", "/v1/completions", json={"prompt": [-1]}, headers=headers)
        assert answer.status_code == 400
        assert answer.headers.get("access-control-allow-origin") == allowed


def test_large_bodies_are_refused_before_they_are_read(small: Server) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ALICE}\r\n"
    head += "Content-Type: application/json\r\n"
    for length, body in (
        ("Content-Length: 4000000000", b""),
        ("Transfer-Encoding: chunked", b"1000\r\n" + b" " * 4096 + b"\r\n"),
    ):
        with socket.create_connection(address(small)) as client:
            client.settimeout(30)
            client.sendall(f"{head}{length}\r\n\r\n".encode() + body)
            said = b"".join(iter(lambda: client.recv(4096), b""))  # and then it hears no more
            assert said.startswith(b"HTTP/1.1 413"), said
            assert b"4000 bytes" in said
    fits = json.dumps({"prompt": "x" * 3000, "max_tokens": 1})
    for text, status in ((fits, 200), (fits + " " * 1000, 413)):
        headers = {**bearer(ALICE), "Content-Type": "application/json"}
        answer = small.request("POST", "/v1/completions", content=text, headers=headers)
        assert answer.status_code == status
    document = small.request(
        "PUT", "/v1/documents", content=b"x" * (DOCUMENT_BYTES + 1), headers=bearer(ALICE)
    )
    assert document.status_code == 413
    assert f"{DOCUMENT_BYTES} bytes" in document.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_back(small: Server) -> None:
    client = small.client(key=BOB)
    question: dict[str, Any] = {"model": "demo", "prompt": "x", "max_tokens": 50000, "seed": 1}
    wait_until(lambda: busy(small) == 0, "earlier streams' end")
    with ExitStack() as stack:
        for taken in range(TAKEN):
            raw = json.dumps({**question, "stream": True}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {BOB}\r\n"
            head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
            waiting = stack.enter_context(socket.create_connection(address(small)))
            waiting.sendall(head.encode() + raw)
            wait_until(lambda taken=taken: busy(small) > taken, "one more stream")
            if taken < TAKEN - 1:  # the queue has room for one
                wait_until(lambda: streams(small)["waiting"] == 0, "it to be read")
        with pytest.raises(openai.RateLimitError, match="wait already") as refused:
            client.completions.create(**question)
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
        assert refused.value.type == "rate_limit_error"
        assert small.request("GET", "/readyz").status_code == 200
    wait_until(lambda: busy(small) == 0, "places that are free again")
    assert client.completions.create(model="demo", prompt="x", max_tokens=2).choices


def test_documents_that_are_read_at_once_are_bounded_too(small: Server, fresh: Document) -> None:
    """And a client that goes away is read for no longer."""
    text = (fresh.text * 100)[:DOCUMENT_BYTES].encode()
    head = f"PUT /v1/documents HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {BOB}\r\n"
    with socket.create_connection(address(small)) as client:
        client.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
        wait_until(lambda: busy(small) > 0, "the document to be read")
        refused = small.request("PUT", "/v1/documents", content=b"x" * 99, headers=bearer(BOB))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
    wait_until(lambda: busy(small) == 0, "the end of its reading")
    listed = small.request("GET", "/v1/documents", headers=bearer(BOB)).json()["data"]
    long = next(each for each in listed if each["tokens"] == len(text))
    found = small.request("GET", f"/v1/documents/{long['id']}", headers=bearer(BOB)).json()
    assert found["cached"] < len(text)


def busy(server: Server) -> int:
    now = streams(server)
    return now["active"] + now["reading"] + now["waiting"]


def streams(server: Server) -> dict[str, int]:
    return dict(server.request("GET", "/readyz").json()["streams"])


def ask(server: Server, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of what is sent as it is, piece by piece."""
    with socket.create_connection(address(server), 60) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            raw.sendall(piece)
        head, _, body = read_all(raw).partition(b"\r\n\r\n")
    return int(head.split()[1]), dict(json.loads(body)["error"])


def read_all(raw: socket.socket) -> bytes:
    found = bytearray()
    with suppress(ConnectionResetError):  # closed while the rest still comes
        while piece := raw.recv(1 << 16):
            found += piece
    return bytes(found)


HEAD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize("size", [40_000, 100_000])
def test_long_headers_are_refused_however_they_come(small: Server, size: int) -> None:
    line = b"X-Long: " + b"a" * size + b"\r\n"
    status, error = ask(small, HEAD + line + b"\r\n")
    assert status == 431
    assert error["type"] == "invalid_request_error"
    assert "32768" in error["message"]
    many = b"".join(b"X-%d: %s\r\n" % (n, b"b" * 90) for n in range(size // 100))
    assert ask(small, HEAD + many + b"\r\n")[0] == 431
    endless = ask(small, HEAD + line[: size // 2], line[size // 2 : -2])
    assert (endless[0], "32768" in endless[1]["message"]) == (431, True)


def test_headers_of_a_browser_are_let_in(small: Server) -> None:
    cookies = b"Cookie: " + b"c" * 12_000 + b"\r\n"
    assert ask(small, HEAD + cookies + b"\r\n")[0] == 401  # it is the key that is missing


def test_long_paths_and_queries_are_refused(small: Server) -> None:
    for target in (f"/v1/models?{'q' * 9000}", f"/{'p' * 9000}"):
        request = HEAD.replace(b"/v1/models", target.encode())
        status, error = ask(small, request + b"\r\n")
        assert status == 414
        assert "8192 at most" in error["message"]
        assert len(error["message"]) < 200


def test_what_is_no_request_is_told_so_in_the_apis_shape(small: Server) -> None:
    told = len(small.log)
    for sent in (
        b"nonsense\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 20 + b"\r\n\r\n",
    ):
        status, error = ask(small, sent)
        assert status == 400
        assert "Invalid HTTP request" in error["message"]
    assert "uvicorn" not in small.log[told:]


@pytest.mark.parametrize(("method", "shown"), [(b"POST", True), (b"HEAD", False)])
def test_what_is_no_request_after_all_fills_no_log(
    small: Server, method: bytes, *, shown: bool
) -> None:
    """Its head was one: it has begun to be answered when its body turns out to be none."""
    said = len(small.log)
    chunked = HEAD.replace(b"GET", method) + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"
    for _ in range(3):
        with socket.create_connection(address(small), 60) as raw:
            raw.sendall(chunked)
            head, _, body = read_all(raw).partition(b"\r\n\r\n")
            assert (head.split()[1], b"illegal chunk" in body) == (b"400", shown)
    assert "Traceback" not in small.log[said:]


def test_upgrades_are_ignored_and_fill_no_log(small: Server) -> None:
    said = len(small.log)
    upgrade = b"Connection: close, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    asked = HEAD.replace(b"Connection: close\r\n", upgrade)
    assert [ask(small, asked + b"\r\n")[0] for _ in range(3)] == [401] * 3
    lines = small.log[said:]
    assert "WebSocket" not in lines
    assert "upgrade" not in lines


def test_headers_that_do_not_come_in_time(slow: socket.socket) -> None:
    began = time.monotonic()
    slow.settimeout(60)
    assert slow.recv(100) == b""
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--streams", "7"), 2, "expected one of (8, 16, 32, 64, 128)"),
        (("--api-keys", "/nowhere/keys.toml"), 2, "No such file"),
        (("--host", "203.0.113.1"), 2, "choose others with --host"),
        (("--store", "nonsense://x"), 2, "no backend for nonsense"),
        (("no-such-model.pth",), 2, "no-such-model.pth"),
    ],
)
def test_what_cannot_be_served_says_why(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    store = ("--store", (tmp_path / "states").as_uri())
    done = run("serve", "--port", "0", "--workers", "1", *store, *arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_another_server_has(small: Server, tmp_path: Path) -> None:
    port = str(address(small)[1])
    done = run("serve", "--port", port, "--store", (tmp_path / "states").as_uri())
    assert done.returncode == 2
    assert "in use" in done.stderr
