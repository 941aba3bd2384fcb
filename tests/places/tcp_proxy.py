"""A proxy between a client and a server of this machine, for bad networks: slow, or cut off."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

_STEP = 16_384  # bytes forwarded at once


class Proxy:
    """Listens on a free port and passes on what comes, either way, on every connection.

    Args:
        port: the server's.
        bytes_per_s: of each connection and direction; ``None``: as fast as it goes.
        cut_after: a connection is closed when it has brought back this many bytes.
        replaced: what an answer never says, and what it says instead.
    """

    def __init__(
        self,
        port: int,
        *,
        bytes_per_s: float | None = None,
        cut_after: int | None = None,
        replaced: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        self._server_port = port
        self._bytes_per_s = bytes_per_s
        self._cut_after = cut_after
        self._replaced = replaced
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._sockets += [client, server]
                self.connections += 1
                for source, target, back in ((client, server, False), (server, client, True)):
                    threading.Thread(
                        target=self._pass_on, args=(source, target, back), daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, back: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(_STEP):
                if back and self._replaced[0]:
                    data = data.replace(*self._replaced)
                if self._bytes_per_s is not None:
                    time.sleep(len(data) / self._bytes_per_s)
                passed += len(data)
                if back and self._cut_after is not None and passed > self._cut_after:
                    break
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
