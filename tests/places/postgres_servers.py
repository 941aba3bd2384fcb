"""Private PostgreSQL servers for tests, and stores on them.

A server lives in a temporary directory, listens on a Unix socket and on a free port of this
machine, and runs as ``postgres`` where the tests run as root, because it refuses root. The shared
one is started by the first test that wants it and ended with the process; nothing else is touched.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from statestore.backends.base import Backend
from statestore.backends.sql.fleet import FleetPlace, open_revisions
from tests.places.backend_places import FilePlace, open_backend

USER, SECRET = "keeper", "s3cret@/:word"
START_S = 60.0


def _binaries() -> Path:
    """The directory of the newest server's programs; skips where there is none."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4])
    )
    program = str(found[-1]) if found else shutil.which("postgres")
    if program is None:
        pytest.skip("not run: no PostgreSQL (make services installs it)")
    return Path(program).resolve().parent


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """A server of its own: `start`, `stop`, `kill`, `pause`, `resume`, as an operator would; or the
    standby of a `primary`, until it is told to `promote`.
    """

    def __init__(self, primary: PostgresServer | None = None) -> None:
        self._bin = _binaries()
        self._account = "postgres" if os.geteuid() == 0 else None
        self.root = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        if self._account:
            owner = pwd.getpwnam(self._account)
            os.chown(self.root, owner.pw_uid, owner.pw_gid)
        if primary is None:
            self._initialise()
        else:
            self._copy(primary)

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.root,
            "fsync": "off",
            "max_connections": 60,
            "shared_buffers": "32MB",
            "log_line_prefix": "%d|",
        }
        command = [self._bin / "postgres", "-D", self.root / "data"]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **self.as_account())
        self._wait_until_up()

    def stop(self) -> None:
        """Fast shutdown: connections are ended, and everything is written."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """As a crash: connections break, and the next start recovers."""
        self._end(signal.SIGQUIT)

    def promote(self) -> None:
        """From now on it writes."""
        command = [self._bin / "pg_ctl", "promote", "-D", self.root / "data"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self.as_account())

    def pause(self) -> None:
        """Nobody answers any more, but connections stay."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def remove(self) -> None:
        if self.process is not None:
            self.resume()
            self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def connect(self, database: str = "postgres") -> psycopg.Connection[dict[str, Any]]:
        """Raw access, in autocommit."""
        return psycopg.connect(
            host=str(self.root),
            port=self.port,
            user=USER,
            dbname=database,
            password=SECRET,
            autocommit=True,
            row_factory=dict_row,
        )

    def program(self, name: str, *arguments: str) -> str:
        """Run one of PostgreSQL's own programs; its output."""
        done = subprocess.run(
            [self._bin / name, "-h", self.root, "-p", str(self.port), "-U", USER, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PGPASSWORD": SECRET},
        )
        return done.stdout

    def statements(self, database: str) -> list[str]:
        """What clients sent to `database` while its ``log_statement`` was on, in order."""
        lines = (self.root / "log").read_text().splitlines()
        logged = [line for line in lines if line.startswith(f"{database}|LOG:  ")]
        return [
            line.split(": ", 2)[2]
            for line in logged
            if line.split(":  ")[1].startswith(("statement:", "execute"))
        ]

    def create_database(self, template: str = "template1") -> str:
        name = f"s{uuid.uuid4().hex[:12]}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @functools.cached_property
    def at_head(self) -> str:
        """The name of a database whose catalog is at head, to copy from."""
        name = self.create_database()
        place = FleetPlace.parse(self.url(name, Path("/nowhere")))
        with open_revisions(place) as revisions:
            revisions.upgrade()
        return name

    def url(self, database: str, blobs: Path, **options: str) -> str:
        secret = SECRET.replace("@", "%40").replace("/", "%2F").replace(":", "%3A")
        rest = "".join(f"&{name}={value}" for name, value in options.items())
        where = f"127.0.0.1:{self.port}/{database}"
        return f"postgresql+psycopg://{USER}:{secret}@{where}?blobs={blobs.as_uri()}{rest}"

    def _signal_all(self, signal_number: signal.Signals) -> None:
        """To the server and its children, which come and go on their own."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)

    def _initialise(self) -> None:
        password = self.root / "password"
        password.write_text(SECRET)
        password.chmod(0o644)
        command = [self._bin / "initdb", "-D", self.root / "data", "-U", USER, "-E", "UTF8"]
        command += ["--locale=C", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **self.as_account())

    def _copy(self, primary: PostgresServer) -> None:
        command = [self._bin / "pg_basebackup", "-D", self.root / "data", "-R", "-c", "fast"]
        command += ["--no-sync", "-h", primary.root, "-p", str(primary.port), "-U", USER]
        environ = {**os.environ, "PGPASSWORD": SECRET}
        subprocess.run(command, check=True, env=environ, **self.as_account())

    def as_account(self) -> dict[str, Any]:
        if self._account is None:
            return {"cwd": self.root}
        return {
            "user": self._account,
            "group": self._account,
            "extra_groups": [],
            "cwd": self.root,
        }

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((self.root / "log").read_text()) from None
                time.sleep(0.05)

    def _end(self, how: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(START_S)
        self.process = None

    def _pids(self) -> list[int]:
        """The server's process and its children."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]


@functools.cache
def shared_server() -> PostgresServer:
    """The server that most tests share."""
    server = PostgresServer()
    atexit.register(server.remove)
    server.start()
    return server


class PostgresPlace(FilePlace):
    """A `Place`: a database of its own, at head or copied from `template`, and blobs beside it."""

    def __init__(
        self,
        root: Path,
        server: PostgresServer | None = None,
        template: str | None = None,
        **options: str,
    ) -> None:
        super().__init__(root)
        self.server = server or shared_server()
        self.database = self.server.create_database(template or self.server.at_head)
        root.mkdir(parents=True, exist_ok=True)
        self.url = self.server.url(self.database, root / "blobs", **options)

    def open(self) -> Backend:
        """Patiently, unless the place was given a patience: a loaded machine is no dead place."""
        patience = "" if "timeout_s=" in self.url else "&timeout_s=30"
        return open_backend(f"{self.url}{patience}&find_ms=0")

    def rows(self) -> list[dict[str, Any]]:
        return self.query("SELECT * FROM entries")

    def query(self, statement: str) -> list[dict[str, Any]]:
        with self.server.connect(self.database) as connection:
            return connection.execute(statement).fetchall()

    def drop(self) -> None:
        self.server.drop_database(self.database)


def wait_for_the_dead(place: PostgresPlace) -> None:
    """Until the server has ended what killed clients had sent: a COMMIT may be on its way."""
    others = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid()"
    )
    while place.query(others):
        time.sleep(0.01)
