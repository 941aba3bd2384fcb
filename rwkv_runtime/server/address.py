"""The address that a server listens on, shared by its workers: each has a socket of its own there,
and the kernel spreads connections over them. A worker that dies takes no other's connections along.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import ip_address

from statestore.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port, resolved."""

    family: socket.AddressFamily
    host: str
    port: int

    @property
    def url(self) -> str:
        """For people; an address that means every one is shown as this machine's."""
        address = ip_address(self.host)
        host = "localhost" if address.is_unspecified else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return ip_address(self.host).is_loopback


def reserve(host: str, port: int) -> tuple[Address, socket.socket]:
    """The address for workers to listen on, and a socket that keeps it while it is open.

    Args:
        host: a name or an address.
        port: 0 for any that is free.

    Raises:
        SettingsError: there is no such address here, or somebody listens there already.
    """
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Without SO_REUSEPORT: another server that has it would else share its clients with us.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
            found = probe.getsockname()
        address = Address(family, found[0], found[1])
        return address, open_at(address)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose others with --host, --port"
        ) from None


def open_at(address: Address) -> socket.socket:
    """A socket at `address` that does not listen yet."""
    opened = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((address.host, address.port))
    except BaseException:
        opened.close()
        raise
    return opened
