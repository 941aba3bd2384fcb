"""Private S3 servers for tests: real processes on free ports, whose buckets are directories.

The server is `nanio`: it checks signatures, keeps an object as the file of its name and beside it,
in ``.nanio-meta``, what it knows of it. Raw access goes to the files.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from statestore.blobs.objects import ObjectBlobs
from statestore.blobs.s3 import S3Place
from tests.places.postgres_servers import PostgresPlace
from tests.places.redis_servers import free_port

KEY_ID, SECRET = "KEEPER", "s3cret+key/of&the=bucket"
PREFIX = "team/states"
START_S = 60.0


class S3Server:
    """One process. `start` after `stop` brings it back on the same port, with what it holds."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or Path(tempfile.mkdtemp(prefix="s3-", dir="/tmp"))
        self.data = self.root / "data"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.data.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "nanio", "serve", "--host", "127.0.0.1", "--no-access-log"]
        command += ["--port", str(self.port), "--data-dir", str(self.data)]
        secrets = {"NANIO_ACCESS_KEY": KEY_ID, "NANIO_SECRET_KEY": SECRET}
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **secrets}
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once; what it holds stays."""
        if self.process is not None:
            self.resume()
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Keep connections open, answer nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def create_bucket(self) -> str:
        name = f"b{uuid.uuid4().hex[:12]}"
        (self.data / name).mkdir()
        return name

    def options(self, bucket: str, **changes: str) -> dict[str, str]:
        """Those of a store's URL, secrets and all."""
        return {
            "blobs": f"s3://{bucket}/{PREFIX}",
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": KEY_ID,
            "secret_access_key": SECRET,
            **changes,
        }

    def open(self, bucket: str, **changes: str) -> ObjectBlobs:
        options = self.options(bucket, **changes)
        return S3Place.parse(options["blobs"], options).open()

    def objects(self, bucket: str) -> set[str]:
        """The files' names under the prefix."""
        return {path.name for path in (self.data / bucket / PREFIX).glob("*") if path.is_file()}

    def path(self, bucket: str, name: str) -> Path:
        return self.data / bucket / PREFIX / name

    def noted(self, bucket: str, name: str) -> Path:
        """What the server keeps beside an object that it has stored itself."""
        return self.data / bucket / ".nanio-meta" / PREFIX / f"{name}.json"

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=1)
        except urllib.error.HTTPError:
            return True  # it wants a signature
        except OSError:
            return False
        return True


@functools.cache
def shared_server() -> S3Server:
    """The server that most tests share."""
    server = S3Server()
    atexit.register(server.remove)
    server.start()
    return server


class ObjectPlace(PostgresPlace):
    """A `Place`: a database of its own, and a bucket of its own for the blobs."""

    def __init__(self, root: Path, s3: S3Server | None = None, **options: Any) -> None:
        super().__init__(root)
        self.s3 = s3 or shared_server()
        self.bucket = self.s3.create_bucket()
        given = self.s3.options(self.bucket, **options)
        query = "&".join(f"{name}={quote(value, safe='/:')}" for name, value in given.items())
        self.url = f"{self.url.partition('?')[0]}?{query}"

    def path(self, name: str) -> Path:
        return self.s3.path(self.bucket, name)

    def blob_names(self) -> set[str]:
        return self.s3.objects(self.bucket)

    def write_blob(self, name: str, content: bytes, age_s: float) -> None:
        self.s3.noted(self.bucket, name).unlink(missing_ok=True)
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (time.time() - age_s,) * 2)

    def remove_blob(self, name: str) -> None:
        self.path(name).unlink()
        self.s3.noted(self.bucket, name).unlink(missing_ok=True)

    def drop(self) -> None:
        super().drop()
        shutil.rmtree(self.s3.data / self.bucket, ignore_errors=True)
