"""Private servers for the benchmarks: free ports, temporary directories, ended with the block."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from statestore.settings import open_revisions

MISSING = "not run: no {} (make services installs it)"
START_S = 60.0


def has_redis() -> bool:
    """Whether a redis-server is installed."""
    return shutil.which("redis-server") is not None


def postgres_binaries() -> Path | None:
    """The directory of the newest PostgreSQL's programs."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4])
    )
    program = str(found[-1]) if found else shutil.which("postgres")
    return Path(program).resolve().parent if program else None


@contextmanager
def private_redis() -> Iterator[int]:
    """A server that keeps nothing on disk; its port."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as directory:
        command = ["redis-server", "--port", str(port), "--dir", directory, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.kill()
            process.wait()


@contextmanager
def private_postgres() -> Iterator[str]:
    """A server with its own defaults, which waits for the disk; ``user@host:port`` of its URLs.

    It refuses root, so it runs as ``postgres`` then. Whoever may connect needs no password.
    """
    binaries = postgres_binaries()
    assert binaries is not None
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp", ignore_cleanup_errors=True) as root:
        account = _account(Path(root))
        data = f"{root}/data"
        command = [str(binaries / "initdb"), "-D", data, "-U", "bench", "-E", "UTF8", "--locale=C"]
        subprocess.run([*command, "--auth=trust"], check=True, stdout=subprocess.DEVNULL, **account)
        command = [str(binaries / "postgres"), "-D", data, "-p", str(port), "-k", root]
        process = subprocess.Popen(
            [*command, "-h", "127.0.0.1"], stderr=subprocess.DEVNULL, **account
        )
        try:
            _wait_for(port, process)
            while subprocess.run(  # it listens before it has started up
                [binaries / "pg_isready", "-q", "-h", root, "-p", str(port)], check=False
            ).returncode:
                time.sleep(0.02)
            yield f"bench@127.0.0.1:{port}"
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(START_S)
            process.kill()
            process.wait()


def create_database(server: str, name: str) -> str:
    """Make an empty database on `server` at this release's tables; the URL of a store on it."""
    import psycopg

    with psycopg.connect(f"postgresql://{server}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    url = f"postgresql+psycopg://{server}/{name}"
    with open_revisions(f"{url}?blobs=file:///nowhere") as revisions:
        revisions.upgrade()
    return url


def _account(root: Path) -> dict[str, Any]:
    """How to start a process that may not be root, in `root`."""
    if os.geteuid() != 0:
        return {"cwd": root}
    owner = pwd.getpwnam("postgres")
    os.chown(root, owner.pw_uid, owner.pw_gid)
    return {"cwd": root, "user": "postgres", "group": "postgres", "extra_groups": []}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("a server did not start")
        time.sleep(0.02)
