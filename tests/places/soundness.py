"""What holds of a store at rest, whatever has happened to it: raw access and the store's own words
agree.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing

from statestore.entry import EntryFilter
from tests.places.backend_places import Place, a_blob


def check_entries(place: Place) -> None:
    """Each entry's blob is there with the right bytes, and totals are sums."""
    with closing(place.open()) as backend:
        listed = list(backend.entries(EntryFilter()))
        usage = backend.usage()
        by_namespace = {entry.namespace: backend.usage(entry.namespace) for entry in listed}
    for entry in listed:
        assert place.read_blob(entry.blob) == a_blob(entry.key, entry.blob_bytes)
    rows = place.rows()
    assert len(listed) == len(rows) == usage.entries
    assert usage.blob_bytes == sum(row["blob_bytes"] for row in rows)
    assert usage.pinned == sum(row["pinned"] for row in rows)
    assert usage.quarantined == sum(row["status"] == "quarantined" for row in rows)
    for name, count in Counter(row["namespace"] for row in rows).items():
        assert by_namespace[name].entries == count
    assert sum(usage.blob_bytes for usage in by_namespace.values()) == usage.blob_bytes


def named(place: Place) -> set[str]:
    """The blobs that entries name."""
    return {row["blob"] for row in place.rows()}
