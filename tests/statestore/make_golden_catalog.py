"""Makes ``tests/golden/catalog-<head>.sqlite3``: a real catalog of this revision, with rows.

Run once, when a revision is added, and commit the file; catalogs of former revisions stay as they
are::

    python -m tests.statestore.make_golden_catalog

`EXPECTED` is what a later release has to find in it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from statestore.backends.file import open_file_backend
from statestore.entry import Entry, Role, Status
from statestore.tables import HEAD
from tests.statestore.backend_places import CREATED_AT, a_key, an_entry, publish

GOLDEN = Path(__file__).parent.parent / "golden"


def _fixed(number: int, **fields: object) -> Entry:
    return an_entry(number, blob=f"{a_key(number)}.{number:016x}", **fields)


EXPECTED = {
    entry.key: entry
    for entry in (
        _fixed(0),
        _fixed(
            1,
            namespace="tenant ü",
            role=Role.PROMPT,
            has_output=True,
            pinned=True,
            model="模型",
            labels={"project": "x", "": "ü"},
            score=12.5,
        ),
        _fixed(2, role=Role.SPARSE, expires_at=CREATED_AT + 60),
        _fixed(3, role=Role.NAMED, status=Status.QUARANTINED, reason="CorruptError: a bit flipped"),
    )
}
DELETED = a_key(4)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        backend = open_file_backend(Path(directory))
        for entry in EXPECTED.values():
            publish(backend, entry)
        publish(backend, _fixed(4))
        backend.delete(DELETED, "evicted")
        backend.close()
        shutil.copy(Path(directory) / "catalog.sqlite3", GOLDEN / f"catalog-{HEAD}.sqlite3")


if __name__ == "__main__":
    main()
