"""A store checked and mended: damage taken down, a lost catalog made anew, totals summed anew."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from statestore import Identity, StateStore, open_store
from statestore.entry import Entry, EntryFilter, Role, Status
from statestore.keys import StateKey
from statestore.reconcile import check_all, left_overs, mendable, take_down
from tests.places.backend_places import digest
from tests.places.postgres_servers import shared_server
from tests.places.states import make_state

IDENTITY = Identity(bytes(range(32)), "tenant")


def put(store: StateStore, number: int) -> StateKey:
    key = StateKey(digest(f"state {number}"), 100 + number)
    store.put(
        IDENTITY,
        key,
        make_state(number),
        token_digest=digest(f"tokens {number}"),
        role=Role.SEGMENT,
        cost_s=1.25,
        model="m.pth",
        ancestor_tokens=number,
    )
    return key


def blob_of(root: Path, key: StateKey) -> Path:
    (found,) = root.glob(f"blobs/*/{key}.*")
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[StateStore]:
    with open_store(str(root)) as opened:
        for number in range(4):
            put(opened, number)
        yield opened


def entries(store: StateStore) -> dict[StateKey, Entry]:
    return {entry.key: entry for entry in store.list()}


def drop_rows(root: Path, statement: str) -> None:
    with closing(sqlite3.connect(root / "catalog.sqlite3")) as connection, connection:
        connection.execute(statement)


def recount(store: StateStore, *, mend: bool) -> bool:
    place = mendable(store.backend)
    assert place is not None
    return place.recount(mend=mend)


def test_a_lost_catalog_comes_back(store: StateStore, root: Path) -> None:
    before = entries(store)
    usage = store.usage()
    drop_rows(root, "DELETE FROM entries")
    assert not recount(store, mend=False)
    found = list(left_overs(store, 0.0, adopt=False))
    assert {blob.entry and blob.entry.key for blob in found} == set(before)
    assert entries(store) == {}, "only looked at"
    assert all(blob.adopted for blob in left_overs(store, 0.0, adopt=True))
    after = entries(store)
    for key, entry in before.items():
        at = after[key].created_at
        assert abs(at - entry.created_at) < 0.001
        same = replace(after[key], created_at=entry.created_at, used_at=entry.used_at)
        assert replace(same, score=entry.score) == entry
    assert not recount(store, mend=True)
    assert recount(store, mend=False)
    assert store.usage() == usage
    assert all(not checked.problem for checked in check_all(store, store.list()))
    key = next(iter(before))
    assert store.get(IDENTITY, key) is not None


def test_a_state_that_was_removed_stays_removed(store: StateStore, root: Path) -> None:
    key = put(store, 9)
    blob = blob_of(root, key)
    content = blob.read_bytes()
    store.delete(key)
    blob.write_bytes(content)  # its removal was interrupted
    (found,) = left_overs(store, 0.0, adopt=True)
    assert found.entry is not None
    assert not found.adopted
    assert key not in entries(store)


def test_what_is_no_sound_state_of_its_name_is_left(store: StateStore, root: Path) -> None:
    one, other, *_ = entries(store)
    content = blob_of(root, one).read_bytes()
    cut = blob_of(root, other).read_bytes()[:-1]
    shelf = blob_of(root, other).parent
    (shelf / f"{other}.{'0' * 16}").write_bytes(content)  # of another key
    (shelf / f"{other}.{'1' * 16}").write_bytes(cut)
    (shelf / f"{other}.{'2' * 16}").write_bytes(b"")
    (shelf / f"{other.hex}.part").write_bytes(content)
    found = {blob.blob[-17:]: blob for blob in left_overs(store, 0.0, adopt=True)}
    assert len(found) == 4
    assert not any(blob.adopted or blob.entry for blob in found.values())
    assert found["." + "0" * 16].problem.startswith("ForeignError")
    assert found["." + "1" * 16].problem.startswith("TruncatedError")


def test_young_blobs_and_those_of_a_key_that_is_there_are_left(
    store: StateStore, root: Path
) -> None:
    key = next(iter(entries(store)))
    blob = blob_of(root, key)
    twin = blob.with_name(f"{key}.{'0' * 16}")
    twin.write_bytes(blob.read_bytes())
    assert list(left_overs(store, 3600.0, adopt=True)) == []
    (found,) = left_overs(store, 0.0, adopt=True)
    assert not found.adopted
    assert entries(store)[key].blob == blob.name


def test_a_quarantined_state_is_replaced_by_a_sound_blob(store: StateStore, root: Path) -> None:
    key, entry = next(iter(entries(store).items()))
    blob = blob_of(root, key)
    twin = blob.with_name(f"{key}.{'0' * 16}")
    twin.write_bytes(blob.read_bytes())
    store.quarantine(entry, "damaged")
    assert [found.adopted for found in left_overs(store, 0.0, adopt=True)] == [True]
    assert entries(store)[key].status is Status.READY
    assert not blob.exists()


def test_damage_is_quarantined_and_what_is_gone_is_removed(store: StateStore, root: Path) -> None:
    damaged, gone, replaced, sound = entries(store)
    flipped = bytearray(blob_of(root, damaged).read_bytes())
    flipped[-50] ^= 1
    blob_of(root, damaged).write_bytes(flipped)
    blob_of(root, gone).unlink()
    blob_of(root, replaced).unlink()
    found = {checked.entry.key: checked for checked in check_all(store, store.list())}
    assert [bool(found[key].problem) for key in (damaged, gone, replaced, sound)] == [1, 1, 1, 0]
    store.delete(replaced)
    done = {key: take_down(store, checked) for key, checked in found.items() if checked.problem}
    assert done == {damaged: "quarantined", gone: "removed", replaced: ""}
    after = entries(store)
    assert set(after) == {damaged, sound}
    assert after[damaged].status is Status.QUARANTINED
    assert store.departed([gone])[gone].reason == "quarantined: Missing: the blob has gone"
    assert recount(store, mend=False)


def test_totals_are_those_of_the_entries_again(store: StateStore, root: Path) -> None:
    usage = store.usage()
    assert recount(store, mend=False)
    drop_rows(root, "UPDATE namespace_totals SET blob_bytes = blob_bytes + 7, pinned = 3")
    assert store.usage() != usage
    assert not recount(store, mend=False)
    assert not recount(store, mend=True)
    assert recount(store, mend=True)
    assert store.usage() == usage
    assert store.usage("tenant") == usage


def test_a_catalog_on_a_server_is_mended_alike(tmp_path: Path) -> None:
    server = shared_server()
    database = server.create_database(server.at_head)
    with open_store(f"{server.url(database, tmp_path / 'blobs')}&find_ms=0") as store:
        keys = {put(store, number) for number in range(3)}
        usage = store.usage()
        with server.connect(database) as connection:
            connection.execute("DELETE FROM entries")
        assert list(store.list()) == []
        assert all(blob.adopted for blob in left_overs(store, 0.0, adopt=True))
        assert not recount(store, mend=True)
        assert recount(store, mend=False)
        assert store.usage() == usage
        found = store.list(EntryFilter(namespace="tenant", model="m.pth"))
        assert {entry.key for entry in found} == keys
        assert all(store.get(IDENTITY, key) is not None for key in keys)
    server.drop_database(database)
