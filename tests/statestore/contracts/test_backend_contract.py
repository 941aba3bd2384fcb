"""What every backend owes its callers. A backend plugs in by a subclass with a `place` fixture."""

from __future__ import annotations

import math
import re
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statestore.backends.base import Backend
from statestore.entry import MEMO_BYTES, Change, EntryFilter, Role, Status, Usage
from statestore.errors import ClosedError, InputError
from statestore.keys import StateKey
from tests.places.backend_places import (
    CREATED_AT,
    FilePlace,
    Place,
    PlaceContract,
    a_blob,
    a_key,
    an_entry,
    publish,
)

NOW = CREATED_AT + 10_000

CALLS: dict[str, Callable[[Backend], Any]] = {
    "longest": lambda backend: backend.longest([a_key(0)], NOW),
    "publish": lambda backend: publish(backend, an_entry(0)),
    "touch": lambda backend: backend.touch(an_entry(0), NOW, 0.0),
    "update": lambda backend: backend.update(a_key(0), Change(pinned=True)),
    "delete": lambda backend: backend.delete(a_key(0), "deleted"),
    "entries": lambda backend: list(backend.entries(EntryFilter())),
    "departed": lambda backend: backend.departed([a_key(0)]),
    "usage": lambda backend: backend.usage(),
    "sweep": lambda backend: backend.sweep(NOW, 0.0),
}


#: And what is said of them.
TOO_MANY_LABELS: list[tuple[dict[str, str], str]] = [
    ({str(n): "" for n in range(65)}, "65 labels, 64 at most: drop some"),
    ({"é" * 129: ""}, f"the name of label '{'é' * 40}' has 258 bytes, 256 at most"),
    (
        {"n" * 10**6: ""},
        f"the name of label '{'n' * 40}' has 1,000,000 bytes, 256 at most: shorten",
    ),
    ({"a": "v" * 4097}, "the value of label 'a' has 4,097 bytes, 4,096 at most: shorten it"),
    ({"a": "€" * 1366}, "the value of label 'a' has 4,098 bytes, 4,096 at most"),
    (
        dict.fromkeys("abcd", "v" * 4095) | {"e": ""},
        "16,385 bytes together, 16,384 at most: shorten or drop some",
    ),
]


class BackendContract(PlaceContract):
    """Inherit and give `place`. Listing, totals and sweeping: `test_listing_contract`."""

    # Publish and read

    def test_an_entry_comes_back_as_it_was(self, backend: Backend, place: Place) -> None:
        entry = an_entry(
            3,
            namespace="tenant ü",
            role=Role.PROMPT,
            has_output=True,
            cost_s=0.1,
            hits=7,
            score=-1e300,
            pinned=True,
            expires_at=NOW + 0.1,
            model="a model's name: 模型",
            labels={"project": "x y", "": "empty", "emoji": "🦜"},
            memo="ü" * (MEMO_BYTES // 2),
        )
        assert publish(backend, entry)
        assert self.same(backend.longest([entry.key], NOW), entry)
        assert list(backend.entries(EntryFilter())) == [entry]
        again = place.open()
        assert self.same(again.longest([entry.key], NOW), entry)
        again.close()

    def test_a_blob_is_the_buffers_one_after_the_other(
        self, backend: Backend, place: Place
    ) -> None:
        numbers = struct.pack("<6f", *range(6))
        parts = [b"head", bytearray(b"\x00" * 60), memoryview(b""), memoryview(numbers).cast("f")]
        entry = an_entry(0, blob_bytes=4 + 60 + 24)
        assert backend.publish(entry, parts)
        blob = backend.read(entry)
        assert blob is not None
        assert bytes(blob) == place.read_blob(entry.blob) == b"head" + b"\x00" * 60 + numbers

    def test_an_empty_blob(self, backend: Backend) -> None:
        entry = an_entry(0, blob_bytes=0)
        assert backend.publish(entry, [])
        assert backend.read(entry) == b""

    def test_the_callers_buffer_is_not_kept(self, backend: Backend) -> None:
        buffer = bytearray(b"before")
        entry = an_entry(0, blob_bytes=6)
        backend.publish(entry, [buffer])
        buffer[:] = b"after."
        assert backend.read(entry) == b"before"

    def test_a_read_buffer_outlives_its_state(self, backend: Backend) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        blob = backend.read(entry)
        backend.delete(entry.key, "deleted")
        backend.close()
        assert blob == a_blob(entry.key)

    def test_a_blob_that_has_gone_reads_as_none(self, backend: Backend, place: Place) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        place.remove_blob(entry.blob)
        assert backend.read(entry) is None

    def test_a_blob_that_grew_is_not_read_beyond_one_byte(
        self, backend: Backend, place: Place
    ) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        place.remove_blob(entry.blob)
        place.write_blob(entry.blob, a_blob(entry.key) * 1000, age_s=0)
        blob = backend.read(entry)
        assert blob is not None
        assert len(blob) == 1001

    def test_a_blob_of_another_size_is_refused(self, backend: Backend, place: Place) -> None:
        entry = an_entry(0, blob_bytes=1000)
        with pytest.raises(InputError, match="blob_bytes=1000, but the blob has 999"):
            backend.publish(entry, [b"x" * 999])
        assert place.rows() == []
        assert place.blob_names() == set()

    @pytest.mark.parametrize("field", ["namespace", "model", "schema_id"])
    @pytest.mark.parametrize("value", ["a\x00b", "\ud800"])
    def test_text_that_no_catalog_holds_is_refused(
        self, backend: Backend, place: Place, field: str, value: str
    ) -> None:
        with pytest.raises(InputError, match=field):
            publish(backend, an_entry(0, **{field: value}))
        assert place.blob_names() == set()

    @pytest.mark.parametrize("label", [("\ud800", "a"), ("a", "\ud800"), ("a", 1)])
    def test_a_label_that_no_catalog_holds_is_refused(
        self, backend: Backend, place: Place, label: tuple[str, Any]
    ) -> None:
        with pytest.raises(InputError, match="labels"):
            publish(backend, an_entry(0, labels={label[0]: label[1]}))
        assert place.blob_names() == set()
        publish(backend, an_entry(0))
        with pytest.raises(InputError, match="labels"):
            backend.update(a_key(0), Change(labels={label[0]: label[1]}))

    def test_more_labels_than_an_entry_may_have_are_refused(
        self, backend: Backend, place: Place
    ) -> None:
        for labels, said in TOO_MANY_LABELS:
            with pytest.raises(InputError, match=re.escape(f"field labels: {said}")) as refused:
                publish(backend, an_entry(0, labels=labels))
            assert len(str(refused.value)) < 200
        assert place.blob_names() == set()
        publish(backend, an_entry(0, labels={"kept": "x"}))
        for labels, said in TOO_MANY_LABELS:
            with pytest.raises(InputError, match=re.escape(said)):
                backend.update(a_key(0), Change(labels=labels))
        assert next(backend.entries(EntryFilter())).labels == {"kept": "x"}

    def test_as_many_labels_as_an_entry_may_have(self, backend: Backend) -> None:
        many = {f"{n:03}": "v" * 253 for n in range(64)}  # 16,384 bytes
        large = {"n" * 256: "€" * 1365 + "x", "b": ""}
        publish(backend, an_entry(0, labels=many))
        publish(backend, an_entry(1, labels=large))
        assert backend.update(a_key(1), Change(labels=many))
        assert backend.update(a_key(0), Change(labels=large))
        found = [backend.longest([a_key(n)], CREATED_AT) for n in (0, 1)]
        assert [entry and entry.labels for entry in found] == [large, many]

    def test_texts_are_bounded(self, backend: Backend, place: Place) -> None:
        most = {"namespace": 256, "model": 1024, "schema_id": 256, "reason": 4096}
        for field, size in most.items():
            for text in ("é" * (size // 2) + "x", "x" * 10**6):
                said = f"field {field}: .* at most: shorten it"
                with pytest.raises(InputError, match=said) as refused:
                    publish(backend, an_entry(0, **{field: text}))
                assert len(str(refused.value)) < 200
        assert place.blob_names() == set()
        longest = {field: "é" * (size // 2) for field, size in most.items()}
        publish(backend, an_entry(0, **longest))
        found = next(backend.entries(EntryFilter()))
        assert {field: getattr(found, field) for field in most} == longest
        with pytest.raises(InputError, match="reason"):
            backend.update(a_key(0), Change(reason="x" * 4097))

    @pytest.mark.parametrize("count", [-1, 1 << 63])
    def test_a_number_of_tokens_that_no_catalog_counts_is_refused(
        self, backend: Backend, place: Place, count: int
    ) -> None:
        with pytest.raises(InputError, match="ancestor_tokens"):
            publish(backend, an_entry(0, ancestor_tokens=count))
        assert place.blob_names() == set()

    @pytest.mark.parametrize("field", ["cost_s", "score", "used_at", "expires_at"])
    def test_what_is_not_a_number_is_refused(
        self, backend: Backend, place: Place, field: str
    ) -> None:
        with pytest.raises(InputError, match=field):
            publish(backend, an_entry(0, **{field: math.nan}))
        assert place.blob_names() == set()

    def test_the_first_writer_wins(self, backend: Backend, place: Place) -> None:
        first, second = an_entry(0, model="first"), an_entry(0, model="second")
        assert publish(backend, first)
        assert not publish(backend, second)
        assert self.same(backend.longest([first.key], NOW), first)
        assert place.blob_names() == {first.blob}

    def test_a_quarantined_entry_is_replaced(self, backend: Backend, place: Place) -> None:
        bad, good = an_entry(0), an_entry(0)
        publish(backend, bad)
        backend.update(bad.key, Change(status=Status.QUARANTINED, reason="a bit flipped"))
        assert publish(backend, good)
        assert self.same(backend.longest([good.key], NOW), good)
        assert place.blob_names() == {good.blob}
        assert backend.usage() == Usage(1, 1000, 2000, 0, 0)

    def test_an_expired_entry_is_replaced(self, backend: Backend, place: Place) -> None:
        old = an_entry(0, expires_at=CREATED_AT + 5)
        early, late = an_entry(0, created_at=CREATED_AT + 4), an_entry(0, created_at=CREATED_AT + 5)
        publish(backend, old)
        assert not publish(backend, early)
        assert publish(backend, late)
        assert place.blob_names() == {late.blob}

    # Longest

    def test_the_deepest_stored_key_is_found(self, backend: Backend) -> None:
        for number in (2, 5, 8):
            publish(backend, an_entry(number))
        found = backend.longest([a_key(number) for number in (9, 7, 5, 4, 2)], NOW)
        assert found is not None
        assert found.key == a_key(5)

    def test_nothing_stored_and_nothing_asked(self, backend: Backend) -> None:
        assert backend.longest([], NOW) is None
        assert backend.longest([a_key(0)], NOW) is None

    @pytest.mark.parametrize("position", [0, 63, 64, 39_999])
    def test_tens_of_thousands_of_keys(self, backend: Backend, position: int) -> None:
        keys = [a_key(number) for number in range(40_000)]
        entry = an_entry(position)
        publish(backend, entry)
        assert self.same(backend.longest(keys, NOW), entry)

    def test_a_key_given_twice_is_found(self, backend: Backend) -> None:
        publish(backend, an_entry(1))
        found = backend.longest([a_key(0), a_key(1), a_key(1)], NOW)
        assert found is not None
        assert found.key == a_key(1)

    def test_barred_and_expired_entries_are_stepped_over(self, backend: Backend) -> None:
        publish(backend, an_entry(3))
        publish(backend, an_entry(2, expires_at=NOW))
        publish(backend, an_entry(1))
        backend.update(a_key(3), Change(status=Status.QUARANTINED, reason="bad"))
        keys = [a_key(3), a_key(2), a_key(1)]
        assert [getattr(backend.longest(keys, now), "key", None) for now in (NOW - 1, NOW)] == [
            a_key(2),
            a_key(1),
        ]

    def test_the_number_of_tokens_belongs_to_the_key(self, backend: Backend) -> None:
        entry, shorter = an_entry(5), an_entry(2)
        publish(backend, entry)
        publish(backend, shorter)
        other = StateKey(entry.key.digest, entry.key.n_tokens + 1)
        assert backend.longest([other], NOW) is None
        assert self.same(backend.longest([other, a_key(4), shorter.key], NOW), shorter)
        assert not backend.delete(other, "deleted")
        assert not backend.update(other, Change(pinned=True))
        backend.touch(an_entry(0, key=other), NOW, 9.0)
        assert self.same(backend.longest([entry.key], NOW), entry)

    # Touch, update, delete

    def test_a_touch_counts_a_hit(self, backend: Backend) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        backend.touch(entry, NOW, 12.5)
        backend.touch(entry, NOW + 1, 13.5)
        touched = replace(entry, hits=2, used_at=NOW + 1, score=13.5)
        assert self.same(backend.longest([entry.key], NOW), touched)

    @pytest.mark.parametrize(
        ("given", "fields"),
        [
            ({"memo": "what is known, ü"}, {"memo": "what is known, ü"}),
            ({"memo": ""}, {"memo": ""}),
            ({"expires_at": NOW + 5}, {"expires_at": NOW + 5}),
            ({"expires_at": math.inf}, {"expires_at": None}),
            ({}, {}),
        ],
    )
    def test_a_touch_sets_what_it_is_given(
        self, backend: Backend, given: dict[str, Any], fields: dict[str, Any]
    ) -> None:
        entry, other = an_entry(0, memo="before", expires_at=NOW + 1), an_entry(1, memo="before")
        publish(backend, entry)
        publish(backend, other)
        backend.touch(entry, NOW, 12.5, **given)
        touched = replace(entry, hits=1, used_at=NOW, score=12.5, **fields)
        assert self.same(backend.longest([entry.key], NOW), touched)
        assert self.same(backend.longest([other.key], NOW), other)

    def test_a_touch_decides_when_it_expires(self, backend: Backend) -> None:
        """Whether it is found, and whether a sweep takes it."""
        stays, goes = an_entry(0, expires_at=NOW + 1), an_entry(1)
        publish(backend, stays)
        publish(backend, goes)
        backend.touch(stays, NOW, 1.0, expires_at=math.inf)
        backend.touch(goes, NOW, 1.0, expires_at=NOW + 1)
        assert backend.longest([stays.key], NOW + 2) is not None
        assert backend.longest([goes.key], NOW + 2) is None
        assert backend.sweep(NOW + 2, 0.0).expired == 1
        assert backend.usage().entries == 1

    @pytest.mark.parametrize("memo", ["a" * (MEMO_BYTES + 1), "a\0b", "\ud800"])
    def test_a_memo_that_no_place_keeps(self, backend: Backend, memo: str) -> None:
        with pytest.raises(InputError, match="entry field memo"):
            publish(backend, an_entry(0, memo=memo))

    def test_a_touch_with_a_memo_that_no_place_keeps(self, backend: Backend) -> None:
        memo = "a" * (MEMO_BYTES + 1)
        publish(backend, an_entry(1))
        with pytest.raises(InputError, match="entry field memo"):
            backend.touch(an_entry(1), NOW, 1.0, memo=memo)

    def test_a_touch_of_nothing_is_no_error(self, backend: Backend) -> None:
        backend.touch(an_entry(0), NOW, 1.0)
        assert backend.usage().entries == 0

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"pinned": True}, {"pinned": True}),
            ({"expires_at": NOW + 5}, {"expires_at": NOW + 5}),
            ({"expires_at": math.inf}, {"expires_at": None}),
            ({"labels": {"b": "2", "c": "ü"}}, {"labels": {"b": "2", "c": "ü"}}),
            ({"labels": {}}, {"labels": {}}),
            ({"reason": "why"}, {"reason": "why"}),
            ({}, {}),
        ],
    )
    def test_an_update_changes_what_it_names(
        self, backend: Backend, change: dict[str, Any], field: dict[str, Any]
    ) -> None:
        entry, other = an_entry(0, labels={"a": "1"}, expires_at=NOW + 1), an_entry(1)
        publish(backend, entry)
        publish(backend, other)
        assert backend.update(entry.key, Change(**change))
        assert self.same(backend.longest([entry.key], NOW), replace(entry, **field))
        assert self.same(backend.longest([other.key], NOW), other)

    def test_an_update_of_nothing_says_so(self, backend: Backend) -> None:
        assert not backend.update(a_key(0), Change(pinned=True))

    def test_a_replaced_blob_is_neither_barred_nor_deleted(
        self, backend: Backend, place: Place
    ) -> None:
        bad, good = an_entry(0), an_entry(0)
        publish(backend, bad)
        assert backend.update(bad.key, Change(status=Status.QUARANTINED), blob=bad.blob)
        publish(backend, good)
        assert not backend.update(bad.key, Change(status=Status.QUARANTINED), blob=bad.blob)
        assert not backend.delete(bad.key, "deleted", blob=bad.blob)
        assert self.same(backend.longest([good.key], NOW), good)
        assert place.blob_names() == {good.blob}
        assert backend.delete(bad.key, "deleted", blob=good.blob)

    def test_a_deletion_takes_entry_and_blob(self, backend: Backend, place: Place) -> None:
        entry, other = an_entry(0), an_entry(1)
        publish(backend, entry)
        publish(backend, other)
        assert backend.delete(entry.key, "evicted")
        assert not backend.delete(entry.key, "evicted")
        assert backend.longest([entry.key], NOW) is None
        assert place.blob_names() == {other.blob}
        assert [row["digest"] for row in place.rows()] == [other.key.digest]

    def test_a_deletion_is_remembered_until_the_key_returns(self, backend: Backend) -> None:
        publish(backend, an_entry(0))
        before = time.time()
        backend.delete(a_key(0), "quarantined: a bit flipped")
        gone = backend.departed([a_key(1), a_key(0)])
        assert set(gone) == {a_key(0)}
        assert gone[a_key(0)].reason == "quarantined: a bit flipped"
        assert before <= gone[a_key(0)].departed_at <= time.time()
        publish(backend, an_entry(0))
        assert backend.departed([a_key(0)]) == {}
        backend.delete(a_key(0), "deleted")
        backend.delete(a_key(0), "deleted again")
        assert backend.departed([a_key(0)])[a_key(0)].reason == "deleted"
        assert backend.departed([]) == {}

    def test_a_blob_that_had_gone_does_not_hinder_a_deletion(
        self, backend: Backend, place: Place
    ) -> None:
        entry = an_entry(0)
        publish(backend, entry)
        place.remove_blob(entry.blob)
        assert backend.delete(entry.key, "deleted")

    # Closing and opening again

    def test_two_that_are_open_see_each_other(self, backend: Backend, place: Place) -> None:
        other = place.open()
        entry = an_entry(0)
        publish(backend, entry)
        assert place.blob_names() == {entry.blob}  # written, where that goes on behind the call
        found = other.longest([entry.key], NOW)
        assert found is not None
        assert self.same(found, entry)
        assert other.read(found) == a_blob(entry.key)
        assert other.delete(entry.key, "deleted")
        assert backend.longest([entry.key], NOW) is None
        other.close()

    @pytest.mark.parametrize("call", CALLS)
    def test_a_closed_backend_says_so(self, backend: Backend, call: str) -> None:
        backend.close()
        backend.close()
        with pytest.raises(ClosedError, match="was closed"):
            CALLS[call](backend)

    def test_the_url_opens_the_place_again(self, backend: Backend, place: Place) -> None:
        other = place.open()
        assert other.url == backend.url
        other.close()


class TestFileBackend(BackendContract):
    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return FilePlace(tmp_path / "a store with % and ?")
