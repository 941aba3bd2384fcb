"""The stack of docker-compose.yml, under a project name and on ports of its own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import httpx

from tests.checkout import ROOT

SERVERS = ("server-a", "server-b")


def _compose() -> list[str]:
    """The command: the plugin of today's engines, or the program of older ones."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise RuntimeError("neither `docker compose` nor docker-compose is here")


def _free_ports(names: tuple[str, ...]) -> dict[str, str]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: str(free.getsockname()[1]) for name, free in zip(names, held, strict=True)}
    for free in held:
        free.close()
    return ports


class Stack:
    """Two servers, Redis and PostgreSQL. What it builds and starts, `remove` takes away."""

    def __init__(self, project: str) -> None:
        self._command = [*_compose(), "--project-name", project]
        self._ports = _free_ports(("PORT_A", "PORT_B", "REDIS_PORT", "POSTGRES_PORT"))
        self._servers = dict(zip(SERVERS, ("PORT_A", "PORT_B"), strict=True))

    def run(self, *arguments: str, timeout_s: float = 900) -> str:
        """Run compose; what it printed. Raises with that where it failed."""
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=ROOT,
            env={**os.environ, **self._ports},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout

    def up(self) -> None:
        """Start what is not running, and wait until both servers can answer."""
        self.run("up", "--detach", "--no-build")
        for server in SERVERS:
            self.wait_ready(server)

    def wait_ready(self, server: str, within_s: float = 120) -> None:
        """Raises with the server's log where it is not ready in time."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            try:
                if httpx.get(f"{self.url(server)}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"{server} is not ready: {self.run('logs', '--tail', '60', server)}")

    def url(self, server: str) -> str:
        """Where a server listens on this machine."""
        return f"http://127.0.0.1:{self._ports[self._servers[server]]}"

    def request(
        self, method: str, server: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Any:
        """Ask a server; the JSON that it answers. Raises with the body where it refuses."""
        answer = httpx.request(method, f"{self.url(server)}{path}", json=body, timeout=120)
        if answer.is_error:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json()

    def statestore(self, *arguments: str) -> Any:
        """Run the admin's command inside server-b; what it prints as JSON."""
        return json.loads(self.run("exec", "-T", "server-b", "statestore", *arguments, "--json"))

    def remove(self) -> None:
        """Stop everything and drop its volumes."""
        self.run("down", "--volumes", "--remove-orphans")
