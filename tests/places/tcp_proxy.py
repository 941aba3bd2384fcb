"""A proxy between a client and a server of this machine, for bad networks: slow, or cut off."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Self

_STEP = 16_384  # bytes forwarded at once
_DRIP_S = 0.08  # between two bytes


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
        self.drips = False  # answers come byte by byte: there is always one more, and never all
        self._lossy: set[int] = set()  # pairs of sockets that lead nowhere any more
        self.loses_answer_to: bytes | None = None  # resets the client when it has asked this, once
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

    def lose(self, newest: int | None = None) -> None:
        """Connections are half-open from now on: nobody is told, and nobody heard. All of them, or
        so many that came last.
        """
        sockets = self._sockets if newest is None else self._sockets[-2 * newest :]
        self._lossy.update(id(each) for each in sockets)

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
        with contextlib.suppress(OSError):
            self._relay(source, target, back=back)
        if id(source) in self._lossy:
            return
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _relay(self, source: socket.socket, target: socket.socket, *, back: bool) -> None:
        """Until one end closes, or the connection is to be cut."""
        passed = 0
        while data := source.recv(1 if back and self.drips else _STEP):
            if id(source) in self._lossy:
                continue
            if self._bytes_per_s is not None:
                time.sleep(len(data) / self._bytes_per_s)
            if back:
                data = self._drip(
                    data.replace(*self._replaced) if self._replaced[0] else data, target
                )
            passed += len(data)
            if back and self._cut_after is not None and passed > self._cut_after:
                return
            lost = not back and self._loses(data)
            if lost:  # before the server is asked: its answer may come at once
                self._reset(source)
            target.sendall(data)
            if lost:
                return

    def _drip(self, data: bytes, target: socket.socket) -> bytes:
        """What is left when it drips no more."""
        while self.drips and data:
            target.sendall(data[:1])
            data = data[1:]
            time.sleep(_DRIP_S)
        return data

    def _loses(self, data: bytes) -> bool:
        """Whether what is asked here is what shall get no answer, once."""
        if self.loses_answer_to is None or self.loses_answer_to not in data:
            return False
        self.loses_answer_to = None
        return True

    def _reset(self, client: socket.socket) -> None:
        """As a firewall does that has forgotten a connection: no end, but a refusal (RST)."""
        self._lossy.add(id(client))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
