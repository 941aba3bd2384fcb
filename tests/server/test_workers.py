"""Workers that die, and servers that are told to end. Each test leaves the next one a server."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from rwkv_runtime.demo.corpus import Document
from statestore.settings import open_store
from tests.server.load import stormed
from tests.server.servers import Server, serving, wait_until, workers_of

#: How long the test under load takes; the whole minute is for who has it.
LOAD_S = float(os.environ.get("TEST_LOAD_S", "8"))
STREAMS = 64


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers, and tests that kill them."""
    store = (tmp_path_factory.mktemp("mortal") / "states").as_uri()
    with serving("--workers", "2", "--shutdown-s", "60", store=store) as running:
        yield running


@pytest.fixture(scope="module")
def asked(mortal: Server, text: Document) -> str:
    answer = mortal.request("PUT", "/v1/documents", json={"text": text.text})
    return str(answer.json()["id"])


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_many_streams_at_once(mortal: Server, asked: str, text: Document) -> None:
    questions = list(text.questions)
    seen = stormed(mortal.url, asked, questions, clients=STREAMS, seconds=LOAD_S)
    assert seen.failures == []
    assert seen.wrong == 0
    assert seen.answers >= STREAMS
    wait_until(lambda: mortal.figure("rwkv_streams") == 0, "streams that have ended")
    first = sorted(seen.first_token_s)
    print(
        f"\n{seen.answers} answers in {seen.seconds:.0f} s, {seen.tokens / seen.seconds:.0f} "
        f"tokens/s, first token p50 {first[len(first) // 2]:.2f} s, "
        f"p99 {first[int(0.99 * len(first))]:.2f} s"
    )


def test_a_worker_killed_under_load(mortal: Server, asked: str, text: Document) -> None:
    before = workers_of(mortal)
    victim = min(before)

    def kill() -> None:
        wait_until(lambda: mortal.figure("rwkv_streams") > 4, "streams")
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    seen = stormed(mortal.url, asked, list(text.questions), clients=12, seconds=4, retries=8)
    killer.join()
    assert seen.failures == []
    assert seen.wrong == 0
    with mortal.each_worker() as workers:
        assert victim not in workers
        assert len(before & set(workers)) == 1
    wait_until(lambda: mortal.figure("rwkv_worker_ready") == 2, "both workers' gauges")
    assert "ended with signal 9" in mortal.log
    command = [sys.executable, "-m", "statestore", "--store", mortal.store, "verify", "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    checked = json.loads(done.stdout)
    assert not checked["unsound"]
    assert checked["checked"] > 0


def test_a_terminal_that_closes_lets_streams_end(tmp_path: Path) -> None:
    """It sends SIGHUP to every process of the server."""
    with serving("--workers", "1", store=(tmp_path / "states").as_uri()) as server:
        (worker,) = workers_of(server)
        with server.client().completions.create(
            model="demo", prompt="x", max_tokens=300, seed=1, stream=True
        ) as stream:
            next(iter(stream))
            os.kill(worker, signal.SIGHUP)
            server.signal(signal.SIGHUP)
            assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
        assert server.join() == 0


def test_sigterm_lets_streams_end(mortal: Server, asked: str, text: Document) -> None:
    client = mortal.client()
    prompt = "What was never asked before, and is long enough to be kept. " * 8
    stream = client.completions.create(
        model="demo", prompt=prompt, max_tokens=150, seed=3, stream=True
    )
    first = next(iter(stream))
    mortal.signal(signal.SIGTERM)
    chunks = [first, *stream]
    assert chunks[-1].choices[0].finish_reason == "length"
    assert mortal.join() == 0
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    with open_store(mortal.store, create=False) as store:
        lengths = {entry.key.n_tokens for entry in store.list()}
    assert len(prompt) in lengths


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with serving("--workers", "1", store=(tmp_path / "states").as_uri()) as server:
        (worker,) = workers_of(server)
        with server.client().completions.create(
            model="demo", prompt="x", max_tokens=16000, seed=1, stream=True
        ) as stream:
            next(iter(stream))
            server.signal(signal.SIGINT)
            wait_until(lambda: "shutting down" in server.log, "the first signal")
            assert is_alive(worker)
            server.signal(signal.SIGINT)
            assert server.join() == 1
        assert not is_alive(worker)


def test_a_stream_that_takes_too_long_is_told_so(tmp_path: Path) -> None:
    store = (tmp_path / "states").as_uri()
    with serving("--workers", "1", "--shutdown-s", "0.5", store=store) as server:
        with server.client().completions.create(
            model="demo", prompt="x", max_tokens=16000, seed=1, stream=True
        ) as stream:
            next(iter(stream))
            server.signal(signal.SIGTERM)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
        assert server.join() == 0


def test_half_a_request_holds_no_end_up(tmp_path: Path) -> None:
    store = (tmp_path / "states").as_uri()
    with serving("--workers", "1", "--shutdown-s", "600", store=store) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as half:
            half.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            # One that came behind it has been answered: it has been read that far.
            assert server.request("GET", "/healthz").status_code == 200
            server.signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: half.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert server.join() == 0
        assert "Traceback" not in server.log


def test_workers_do_not_outlive_their_supervisor(tmp_path: Path) -> None:
    with serving("--workers", "2", store=(tmp_path / "states").as_uri()) as server:
        workers = workers_of(server)
        assert len(workers) == 2
        maps = Path(f"/proc/{min(workers)}/maps").read_text("utf-8")
        figures = Path(re.findall(r"(/\S+/rwkv-runtime-[^/]+)/", maps)[0])
        assert figures.is_dir()
        server.signal(signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, workers)), "the workers' end")
        assert not figures.exists()
