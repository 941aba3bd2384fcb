"""Private redis-servers for tests: free ports, directories of their own, ended by their pid.

A server is a real process; what is not installed makes a test say how to get it.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

WAIT_S = 30.0
MISSING = "not run: no redis-server (make services installs it)"


def free_port() -> int:
    """A port that nobody listens on; below 55536, so that a Cluster's bus port exists."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:
            return port


class RedisServer:
    """One process. `start` after `stop` brings it back on the same port, with what it saved."""

    def __init__(self, directory: Path, *options: str, port: int | None = None) -> None:
        self.directory = directory
        self.port = free_port() if port is None else port
        self.socket_path = directory / "redis.sock"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> Redis:
        """Raw access, past the code under test."""
        return Redis(port=self.port, **options)

    def start(self) -> None:
        """Start and wait until it answers."""
        if shutil.which("redis-server") is None:
            pytest.skip(MISSING)
        self.directory.mkdir(exist_ok=True)
        command = ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--dir"]
        command += [self.directory, "--unixsocket", self.socket_path, "--save", ""]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *self.options], stdout=log, stderr=log
            )
        wait_until(self.answers, f"redis-server on port {self.port}")

    def answers(self) -> bool:
        with socket.socket() as probe, socket.socket(socket.AF_UNIX) as local:
            open_to_all = probe.connect_ex(("127.0.0.1", self.port)) == 0
            return open_to_all and local.connect_ex(str(self.socket_path)) == 0

    def pause(self) -> None:
        """Keep connections open, answer nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it; what it held is gone."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
            self.process = None


def wait_until(done: Any, what: str) -> None:
    """Ask until it is so."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            if done():
                return
        except RedisError:
            pass
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {WAIT_S:g} s in vain for {what}")
        time.sleep(0.02)


@contextmanager
def running(*options: str, port: int | None = None) -> Iterator[RedisServer]:
    """One server, in a directory with a name short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = RedisServer(Path(directory), *options, port=port)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def running_cluster(*options: str) -> Iterator[list[RedisServer]]:
    """A Cluster of three primaries, its slots shared out, ready."""
    cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    with ExitStack() as stack:
        servers = [stack.enter_context(running(*cluster, *options)) for _ in range(3)]
        hosts = [f"127.0.0.1:{server.port}" for server in servers]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *hosts, "--cluster-yes"],
            check=True,
            capture_output=True,
        )
        wait_until(lambda: all(map(is_ready, servers)), "the Cluster")
        yield servers


@contextmanager
def sentinel_of(primary: RedisServer, *settings: str) -> Iterator[int]:
    """A Sentinel that watches `primary` as "fleet"; its port. `settings` are lines of its own."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sentinel-") as directory:
        config = Path(directory) / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\n"
            f"sentinel monitor fleet 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds fleet 400\n"
            "sentinel failover-timeout fleet 2000\n" + "\n".join(settings) + "\n"
        )
        with (Path(directory) / "log").open("wb") as log:
            process = subprocess.Popen(
                ["redis-server", str(config), "--sentinel"], stdout=log, stderr=log
            )
        try:
            yield port
        finally:
            process.kill()
            process.wait()


def is_ready(server: RedisServer) -> bool:
    with server.client() as client:
        info = client.execute_command("CLUSTER INFO")
        known = client.execute_command("CLUSTER NODES")
    return info["cluster_state"] == "ok" and len(known) >= 3


def node_of(servers: list[RedisServer], name: str) -> Redis:
    """Raw access to the node that holds a key."""
    slot = key_slot(name.encode())
    with servers[0].client() as client:
        for host, node in client.execute_command("CLUSTER NODES").items():
            for first, *last in node["slots"]:
                if int(first) <= slot <= int((last or [first])[0]):
                    return Redis(port=int(host.partition("@")[0].rpartition(":")[2]))
    raise AssertionError(f"no node has slot {slot}")
