"""What every backend owes those who list, count and sweep; it plugs in as in the other contract."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from statestore.backends.base import Backend
from statestore.entry import Change, EntryFilter, Role, Status, Usage
from statestore.errors import InputError
from tests.places.backend_places import (
    CREATED_AT,
    FilePlace,
    Place,
    PlaceContract,
    a_blob,
    a_key,
    an_entry,
    digest,
    publish,
    publish_all,
)

NOW = CREATED_AT + 10_000


class ListingContract(PlaceContract):
    """Inherit and give `place`."""

    def test_newest_use_comes_first_over_many_pages(self, backend: Backend) -> None:
        order = [(number * 7919) % 300 for number in range(300)]
        used = {number: CREATED_AT + number // 3 for number in order}
        publish_all(backend, (an_entry(n, blob_bytes=1, used_at=used[n]) for n in order))
        listed = list(backend.entries(EntryFilter()))
        assert {entry.key for entry in listed} == {a_key(number) for number in order}
        assert len(listed) == 300
        times = [entry.used_at for entry in listed]
        assert times == sorted(times, reverse=True)

    def test_a_listing_goes_on_while_others_write(self, backend: Backend) -> None:
        publish_all(backend, (an_entry(number, blob_bytes=1) for number in range(260)))
        listing = backend.entries(EntryFilter())
        first = next(listing)
        backend.delete(a_key(0), "deleted")
        backend.touch(first, NOW, 0.0)
        publish(backend, an_entry(1000, blob_bytes=1, used_at=CREATED_AT + 1000))
        rest = [entry.key for entry in listing]
        assert set(rest) == {a_key(number) for number in range(1, 259)}
        assert len(rest) == 258

    @pytest.mark.parametrize(
        ("where", "numbers"),
        [
            (EntryFilter(), {0, 1, 2, 3}),
            (EntryFilter(namespace="other"), {1}),
            (EntryFilter(fingerprint=digest("other")), {2}),
            (EntryFilter(token_digest=digest("tokens 3")), {3}),
            (EntryFilter(model="m"), {1, 2}),
            (EntryFilter(role=Role.NAMED), {3}),
            (EntryFilter(status=Status.QUARANTINED), {0}),
            (EntryFilter(status=Status.READY), {1, 2, 3}),
            (EntryFilter(pinned=True), {2}),
            (EntryFilter(pinned=False), {0, 1, 3}),
            (EntryFilter(labels={"a": "1"}), {1, 2}),
            (EntryFilter(labels={"a": "1", "b": "2"}), {2}),
            (EntryFilter(labels={"c": "1"}), set()),
            (EntryFilter(used_before=CREATED_AT + 2), {0, 1}),
            (EntryFilter(created_before=CREATED_AT + 5), {0, 1, 2}),
            (EntryFilter(created_after=CREATED_AT + 5), {3}),
            (EntryFilter(at_least_bytes=1001), {3}),
            (EntryFilter(at_most_bytes=1000), {0, 1, 2}),
            (EntryFilter(model="m", pinned=False), {1}),
            (EntryFilter(key_prefix=a_key(1).hex[:7]), {1}),
            (EntryFilter(key_prefix=a_key(2).hex), {2}),
            (EntryFilter(key_prefix=""), {0, 1, 2, 3}),
        ],
    )
    def test_filters(self, backend: Backend, where: EntryFilter, numbers: set[int]) -> None:
        publish(backend, an_entry(0))
        publish(backend, an_entry(1, namespace="other", model="m", labels={"a": "1"}))
        model = {"model": "m", "fingerprint": digest("other")}
        publish(backend, an_entry(2, **model, pinned=True, labels={"a": "1", "b": "2"}))
        publish(backend, an_entry(3, role=Role.NAMED, created_at=CREATED_AT + 5, blob_bytes=1001))
        backend.update(a_key(0), Change(status=Status.QUARANTINED))
        assert {entry.key for entry in backend.entries(where)} == set(map(a_key, numbers))

    @pytest.mark.parametrize("prefix", ["xyz", "0" * 65])
    def test_a_key_prefix_is_hex_digits(self, backend: Backend, prefix: str) -> None:
        with pytest.raises(InputError, match="key prefix"):
            list(backend.entries(EntryFilter(key_prefix=prefix)))

    def test_totals_follow_every_change(self, backend: Backend) -> None:
        for number in range(20):
            publish(backend, an_entry(number, blob_bytes=number, pinned=number < 3))
        assert backend.usage() == Usage(20, 190, 380, 0, 3, pinned_bytes=3)
        backend.update(a_key(1), Change(pinned=False, status=Status.QUARANTINED))
        backend.update(a_key(2), Change(status=Status.QUARANTINED))
        assert backend.usage() == Usage(20, 190, 380, 2, 2, pinned_bytes=2)
        backend.update(a_key(2), Change(status=Status.READY))
        backend.delete(a_key(19), "deleted")
        assert backend.usage() == Usage(19, 171, 342, 1, 2, pinned_bytes=2)
        publish(backend, an_entry(1, blob_bytes=101))
        assert backend.usage() == Usage(19, 271, 542, 0, 2, pinned_bytes=2)

    def test_a_sweep_removes_what_no_entry_names_after_a_grace(
        self, backend: Backend, place: Place
    ) -> None:
        kept = an_entry(0)
        publish(backend, kept)
        orphan, part, young = (an_entry(number).blob for number in (1, 2, 3))
        place.write_blob(orphan, b"12345", age_s=100)
        place.write_blob(part + ".part", b"123", age_s=100)
        place.write_blob(young, b"1", age_s=10)
        swept = backend.sweep(time.time(), grace_s=60)
        assert (swept.blobs, swept.blob_bytes, swept.expired) == (2, 8, 0)
        assert place.blob_names() == {kept.blob, young}
        assert backend.sweep(time.time() + 1000, grace_s=0).blobs == 1
        assert place.blob_names() == {kept.blob}
        assert backend.read(kept) == a_blob(kept.key)

    def test_a_sweep_removes_what_has_expired(self, backend: Backend, place: Place) -> None:
        ends = [CREATED_AT + number for number in range(262)]
        publish_all(backend, (an_entry(n, blob_bytes=2, expires_at=ends[n]) for n in range(262)))
        forever = an_entry(1000)
        publish(backend, forever)
        swept = backend.sweep(CREATED_AT + 260, grace_s=1e9)
        assert (swept.blobs, swept.blob_bytes, swept.expired) == (261, 522, 261)
        left = {entry.blob for entry in backend.entries(EntryFilter())}
        assert len(left) == 2
        assert forever.blob in left
        assert place.blob_names() == left
        assert backend.departed([a_key(0)])[a_key(0)].reason == "expired"


class TestFileListing(ListingContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return FilePlace(tmp_path / "store")
