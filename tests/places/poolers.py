"""PgBouncer in front of a test's PostgreSQL: one that pools sessions, or transactions."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.places.postgres_servers import SECRET, USER, PostgresServer
from tests.places.redis_servers import free_port

START_S = 60.0


def _program() -> str:
    """Debian's lies where only root's path leads."""
    found = shutil.which(os.environ.get("TEST_PGBOUNCER", "pgbouncer"))
    found = found or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        pytest.skip("not run: no pgbouncer (make services installs it)")
    return found


@contextmanager
def pooled(server: PostgresServer, mode: str, connections: int = 2) -> Iterator[int]:
    """The port of a pooler of `server`'s that hands out `connections` by `mode`."""
    program, port = _program(), free_port()
    root = server.root / f"pooler-{port}"
    root.mkdir()
    (root / "users").write_text(f'"{USER}" "{SECRET}"\n')
    (root / "settings").write_text(
        f"""[databases]
* = host=127.0.0.1 port={server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {root / "users"}
pool_mode = {mode}
default_pool_size = {connections}
server_round_robin = 1
"""
    )
    for path in (root, *root.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    account = server.as_account()
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-q", str(root / "settings")], stdout=log, stderr=log, **account
        )
    try:
        _wait_until_open(process, port, root / "log")
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
