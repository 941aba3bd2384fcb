"""Real servers in processes of their own, on free ports, ended by their pid. What takes long about
a new process is to load PyTorch, so they are forked from one that has
(`tests.runtime.workers.commanded`).
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.runtime.workers.commanded import CONTEXT, command

WAIT_S = 120.0
SERVING = re.compile(r"Serving (\S+) at (\S+) ")


class Server:
    """`rwkv-runtime serve` with these arguments; `config` is a settings file's content."""

    def __init__(self, *arguments: str, store: str, config: str = "") -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.store = store
        self.url = ""
        self._clients: list[openai.OpenAI] = []
        file = Path(self.directory.name, "config.toml")
        file.write_text(config, encoding="utf-8")
        given = ("--config", str(file), "serve", "--port", "0", "--store", store, *arguments)
        for name in ("in", "out", "error"):
            Path(self.directory.name, name).touch()
        self.process = CONTEXT.Process(target=command, args=(given, self.directory.name))
        self.process.start()

    @property
    def out(self) -> str:
        return Path(self.directory.name, "out").read_text("utf-8")

    @property
    def log(self) -> str:
        return Path(self.directory.name, "error").read_text("utf-8")

    def wait(self) -> None:
        """Until it listens, with all its workers."""

        def serving() -> bool:
            found = SERVING.search(self.out)
            self.url = found[2] if found else ""
            assert self.process.is_alive(), f"the server ended: {self.out}{self.log}"
            return bool(found)

        wait_until(serving, lambda: f"the server: {self.log}")

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        options = {"max_retries": 0, "timeout": 60, **options}
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **options)
        self._clients.append(client)
        return client

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}", timeout=60, **options)

    def figure(self, name: str) -> float:
        """The sum of a metric's samples, all workers and labels together."""
        text = self.request("GET", "/metrics").text
        lines = [line for line in text.splitlines() if re.match(rf"{name}[ {{]", line)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    @contextmanager
    def each_worker(self, count: int = 2) -> Iterator[dict[int, httpx.Client]]:
        """A client for each worker, by pid: its connection stays there."""
        with self.connections(count) as found:
            yield {pid: client for pid, (client,) in found.items()}

    @contextmanager
    def connections(self, workers: int, each: int = 1) -> Iterator[dict[int, list[httpx.Client]]]:
        """So many clients for each worker, by pid; one connection each, which stays there."""
        with ExitStack() as stack:
            found: dict[int, list[httpx.Client]] = {}
            for _ in range(200):
                client = httpx.Client(base_url=self.url, timeout=60)
                mine = found.setdefault(client.get("/readyz").json()["worker"], [])
                if len(mine) == each:
                    client.close()
                else:
                    mine.append(client)
                    stack.callback(client.close)
                if [len(clients) for clients in found.values()] == [each] * workers:
                    break
            else:
                raise AssertionError(f"only {sorted(found)} answer")
            yield found

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.is_alive():
            self.signal(signal.SIGTERM)
        return self.join()

    def join(self) -> int:
        self.process.join(WAIT_S)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise AssertionError(f"the server does not end: {self.log}")
        return code

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process.is_alive():
            self.signal(signal.SIGTERM)
            self.process.join(WAIT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.directory.cleanup()


def wait_until(done: Callable[[], bool], what: Callable[[], str] | str) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"waited {WAIT_S:g} s in vain for {said}")
        time.sleep(0.02)


def workers_of(server: Server) -> set[int]:
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return {int(pid) for pid in children.read_text("ascii").split()}


@contextmanager
def serving(*arguments: str, store: str, config: str = "") -> Iterator[Server]:
    """A server that is ready; ended with the block."""
    server = Server(*arguments, store=store, config=config)
    try:
        server.wait()
        yield server
    finally:
        server.close()
