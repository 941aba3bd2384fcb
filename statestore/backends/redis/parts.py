"""A blob as parts: ``ceil(size / PART_BYTES)`` strings, at least one.

One large value is slow to read: it is gathered in memory that grows, and copied. Parts are copied
into one buffer as they come, a few in flight at a time, so neither side holds a blob twice. 1 KiB
below a power of two, because Redis adds a header and its allocator rounds up: a part of 1 MiB
would take 1.25 MiB.

A part expires `UNPUBLISHED_S` after it was written, unless the entry is published before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from statestore import buffers
from statestore.backends.base import Blob, Follower
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import Command

PART_BYTES: Final = (1 << 20) - (1 << 10)
UNPUBLISHED_S: Final = 600  # longer than the slowest write takes

_IN_FLIGHT: Final = 4  # parts of one round trip

Names = Callable[[int], str]  # the key of a part, by its index


def count_parts(size: int) -> int:
    """How many parts a blob of `size` bytes has."""
    return max(1, -(-size // PART_BYTES))


def write(server: Server, names: Names, blob: Blob) -> None:
    """Write the parts, each with an expiry."""
    commands: list[Command] = []
    for index, part in enumerate(_cut(blob)):
        commands.append(("SET", names(index), part, "EX", UNPUBLISHED_S))
        if len(commands) == _IN_FLIGHT:
            server.run(commands)
            commands = []
    if commands:
        server.run(commands)


def read(
    server: Server,
    names: Names,
    size: int,
    until: float | None = None,
    follower: Follower | None = None,
) -> memoryview | None:
    """The blob, cut one byte beyond `size`; ``None`` if a part is missing.

    Where a part has another length than it should, so has the result. `until` and `follower`: see
    `Server.gather`.
    """
    buffer = buffers.take(size + 1)
    commands = [_reads(names(index), index, size) for index in range(count_parts(size))]
    lengths = server.gather(commands, buffer, until, follower)
    if size == 0:
        return buffer[:0].toreadonly() if server.ask(("EXISTS", names(0)), until) else None
    return buffer[: sum(lengths)].toreadonly() if all(lengths) else None


def unlink(server: Server, names: Names, size: int) -> None:
    """Remove the parts."""
    server.run([("UNLINK", *(names(index) for index in range(count_parts(size))))])


def _reads(name: str, index: int, size: int) -> Command:
    """At most the bytes that belong to this part; of the last one, one more."""
    wanted = min(PART_BYTES, size - index * PART_BYTES)
    last = (index + 1) * PART_BYTES >= size
    return ("GETRANGE", name, 0, wanted - 1 + last)


def _cut(blob: Blob) -> Iterator[bytes]:
    """The blob's bytes in parts; an empty blob is one empty part."""
    pending: list[memoryview] = []
    room = PART_BYTES
    cut = False
    for buffer in blob:
        rest = memoryview(buffer).cast("B")
        while len(rest) > 0:
            pending.append(rest[:room])
            room -= len(pending[-1])
            rest = rest[len(pending[-1]) :]
            if room == 0:
                yield b"".join(pending)
                pending, room, cut = [], PART_BYTES, True
    if pending or not cut:
        yield b"".join(pending)
