"""Makes ``tests/golden/catalog-<head>.sqlite3``: a real catalog of this revision, with rows.

Run once, when a revision is added, and commit the file; catalogs of former revisions stay as they
are::

    python -m tests.golden.make_golden_catalog

`expected` is what a later release has to find in it.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from statestore.backends.base import Backend
from statestore.backends.lookups import LookupSums, lookups_of
from statestore.backends.sightings import sightings_of
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.file import open_file_backend
from statestore.entry import Entry, EntryFilter, Evicted, Role, Status, Usage
from statestore.keys import StateKey, marks
from statestore.tables import HEAD
from tests.checkout import GOLDEN
from tests.places.backend_places import CREATED_AT, a_key, an_entry, digest, publish


def _fixed(number: int, **fields: object) -> Entry:
    return an_entry(number, blob=f"{a_key(number)}.{number:016x}", **fields)


_ENTRIES = {
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
AGE = 5.5  # since 0002
SEEN = marks([digest(f"seen {number}") for number in range(4)])  # three of them since 0003

ASKED = LookupSums("", "tenant ü", digest("model"), 7, 5, 700, 450, 2.5, CREATED_AT)  # since 0005


def expected(revision: str) -> dict[StateKey, Entry]:
    """What is in the golden catalog of `revision`."""
    known = dict(_ENTRIES)
    if revision >= "0002":
        known[a_key(1)] = replace(known[a_key(1)], ancestor_tokens=256)
    if revision >= "0006":
        known[a_key(1)] = replace(known[a_key(1)], memo="1 c 3 2 512 1024")
    return known


def write(backend: Backend) -> None:
    """Make the calls whose outcome a golden catalog holds."""
    publish(backend, _fixed(4, score=AGE))
    backend.evict(0, CREATED_AT)
    for entry in expected(HEAD).values():
        publish(backend, entry)
    assert isinstance(backend, SqlBackend)
    backend.leases.acquire(a_key(5), "a host that is long gone", 60.0)
    assert backend.sightings is not None
    backend.sightings.note(SEEN[:3])
    assert backend.lookups is not None
    backend.lookups.add([ASKED])


def use_golden(backend: Backend, revision: str) -> None:
    """What was a catalog of `revision` is what it was, and usable in every way."""
    known = expected(revision)
    keys = [a_key(number) for number in (4, 3, 2, 1, 0)]
    assert {entry.key: entry for entry in backend.entries(EntryFilter())} == known
    assert backend.departed([DELETED])[DELETED].reason == "evicted"
    assert backend.longest(keys, CREATED_AT) == known[a_key(2)]
    assert backend.longest(keys, CREATED_AT + 60) == known[a_key(1)]
    age = AGE if revision >= "0002" else 0.0
    assert backend.usage() == Usage(4, 4000, 8000, 1, 1, age, pinned_bytes=1000)
    assert backend.usage("tenant ü") == Usage(1, 1000, 2000, 0, 1, age, pinned_bytes=1000)
    assert publish(backend, an_entry(3))
    assert publish(backend, an_entry(4))
    assert backend.delete(a_key(4), "deleted")
    assert backend.sweep(CREATED_AT + 60, 0).expired == 1
    assert backend.usage() == Usage(3, 3000, 6000, 0, 1, age, pinned_bytes=1000)
    assert backend.leases is not None
    assert backend.leases.acquire(a_key(6), "an owner", 60.0).owner == "an owner"
    index = sightings_of(backend)
    assert index is not None
    assert index.seen(SEEN) == (3 if revision >= "0003" else 0)
    backend.touch(an_entry(0), CREATED_AT, 0.0, memo="noted")
    touched = backend.longest([a_key(0)], CREATED_AT)
    assert touched is not None
    assert touched.memo == "noted"
    index.note(SEEN)
    assert index.seen(SEEN) == 4
    tally = lookups_of(backend)
    assert tally is not None
    assert tally.sums() == ([ASKED] if revision >= "0005" else [])
    tally.add([ASKED])
    assert (ASKED in tally.sums()) == (revision < "0005")
    assert backend.evict(0, CREATED_AT) == Evicted(2, 2000)
    assert backend.evict(0, CREATED_AT, namespace="tenant ü") == Evicted(0, 0)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        backend = open_file_backend(Path(directory))
        write(backend)
        backend.close()
        shutil.copy(Path(directory) / "catalog.sqlite3", GOLDEN / f"catalog-{HEAD}.sqlite3")


if __name__ == "__main__":
    main()
