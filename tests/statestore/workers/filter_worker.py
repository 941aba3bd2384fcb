"""Processes that put while generations of a lookup filter come and go, for `test_lookup_filter`.

    python -m tests.statestore.workers.filter_worker ROOT WRITERS ENTRIES

Writers are forked, and tell the reader of each entry they have published; the reader looks for it
at once, through a store that it opened before. A builder makes a new generation again and again.
The exit status is 0 if the reader found every entry.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

from statestore.backends.sql.file import open_file_backend
from tests.places.backend_places import CREATED_AT, a_key, an_entry, publish
from tests.statestore.workers.forked import fork

_NUMBER = struct.Struct("<I")


def filter_of(backend: Any) -> Any:
    """The lookup filter of a store of files."""
    assert backend._filter is not None
    return backend._filter


def write(root: Path, numbers: range, told: int) -> None:
    backend = open_file_backend(root)
    for number in numbers:
        assert publish(backend, an_entry(number, blob_bytes=1))
        os.write(told, _NUMBER.pack(number))
    backend.close()


def build(root: Path) -> None:
    backend = open_file_backend(root)
    while True:
        filter_of(backend).build()


def main(root: Path, writers: int, entries: int) -> None:
    open_file_backend(root).close()
    builder = fork(lambda: build(root))
    read_end, write_end = os.pipe()
    for writer in range(writers):
        numbers = range(writer * entries, (writer + 1) * entries)
        fork(lambda numbers=numbers: write(root, numbers, write_end))  # type: ignore[misc]
    os.close(write_end)
    reader = open_file_backend(root)
    asked = 0
    while told := os.read(read_end, _NUMBER.size):
        (number,) = _NUMBER.unpack(told)
        key = a_key(number)
        found = reader.longest([a_key(10**6), key], CREATED_AT)
        assert found is not None, f"entry {number} was missed"
        assert found.key == key
        asked += 1
    os.kill(builder, signal.SIGKILL)
    assert asked == writers * entries
    reader.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
