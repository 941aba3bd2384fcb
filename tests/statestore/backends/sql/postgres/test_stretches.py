"""Long prompts in PostgreSQL: asked for stretch by stretch, found as if each key was asked for."""

from __future__ import annotations

import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from statestore import open_store
from statestore.backends.sql.file import open_file_backend
from statestore.backends.sql.search import LONG, NEAR
from statestore.entry import Change, EntryFilter, Role, Status
from statestore.keys import ChunkRule, Plan, StateKey, plan
from statestore.keys.plan import STRETCH
from tests.places.backend_places import CREATED_AT, a_blob, an_entry, publish
from tests.places.postgres_servers import PostgresPlace

NOW = CREATED_AT
RULE = ChunkRule(chunk=2, min_chunk=1)
CHUNKS = 1400


def a_plan(shared: int = CHUNKS, other: int = 0) -> Plan:
    """A prompt of 1,400 chunks, of which the first `shared` are those of every other such one."""
    return plan([[7, 8] * shared + [9, other] * (CHUNKS - shared)], bytes(32), RULE)


def change(place: PostgresPlace, what: str) -> None:
    """As a hand does it; to one row."""
    assert len(place.query(f"UPDATE entries SET {what} RETURNING digest")) == 1


def bare(keys: tuple[StateKey, ...]) -> list[StateKey]:
    """The same, without their anchors."""
    return [replace(key, anchor=None) for key in keys]


def test_prompts_share_the_anchors_of_what_they_share() -> None:
    one, other = a_plan(500, 1), a_plan(500, 2)
    assert len(one.keys) == CHUNKS
    for place, (mine, its) in enumerate(zip(one.keys, other.keys, strict=True)):
        alike = place < 500 or place // STRETCH == 499 // STRETCH
        assert (mine.anchor == its.anchor) is alike
        assert mine.anchor == one.keys[place - place % STRETCH].anchor
    assert len({key.anchor for key in one.keys}) == -(-CHUNKS // STRETCH)
    assert all(-(2**63) <= (key.anchor or 0) < 2**63 for key in one.keys)
    short = plan([[7, 8] * 70], bytes(32), RULE)
    assert [key.anchor for key in short.keys] == [key.anchor for key in one.keys[:70]]


def test_an_anchor_is_no_part_of_a_key() -> None:
    key = a_plan().keys[5]
    (same,) = bare((key,))
    assert key == same
    assert hash(key) == hash(same)
    assert str(key) == str(same)
    assert key.anchor != same.anchor


def test_found_as_if_each_key_was_asked_for(backend: Any) -> None:
    dice = random.Random(3)
    keys = a_plan(700, 1).keys_deepest_first
    elsewhere = a_plan(400, 2).keys
    stored: dict[StateKey, bool] = {}
    for number, place in enumerate(dice.sample(range(CHUNKS), 12)):
        usable = number % 3 != 0
        key = keys[place] if number % 2 else elsewhere[place]
        publish(backend, replace(an_entry(number, score=1.0), key=key, blob=f"{key}.{number:016x}"))
        if not usable:
            backend.update(key, Change(status=Status.QUARANTINED, reason="a test"))
        stored[key] = usable
    for _ in range(40):
        first = dice.choice([0, dice.randrange(CHUNKS - 1)])
        asked = keys[first : dice.randrange(first + 1, CHUNKS + 1)]
        if dice.random() < 0.3:
            asked = tuple(key for key in asked if dice.random() < 0.7)
        expected = next((key for key in asked if stored.get(key)), None)
        for given in (asked, bare(asked)):
            found = backend.longest(given, NOW)
            assert (found and found.key) == expected
    assert backend.longest(keys, NOW) is not None


@pytest.mark.parametrize("others", [0, 40])
def test_only_stretches_that_have_an_entry_are_asked_for(
    place: PostgresPlace, backend: Any, others: int
) -> None:
    """So an entry under a wrong anchor, which nobody writes, is not found but among few keys."""
    keys = a_plan().keys_deepest_first
    deep, near = keys[600], keys[NEAR - 1]
    for number, key in enumerate([deep, *a_plan(100, 5).keys_deepest_first[:others]]):
        publish(backend, replace(an_entry(number), key=key, blob=f"{key}.{number:016x}"))
    with place.server.connect(place.database) as connection:
        connection.execute("ANALYZE entries")
    assert backend.longest(keys, NOW).key == deep
    lower = [key for key in keys if key.n_tokens <= deep.n_tokens][: LONG - 1]
    assert backend.longest(lower, NOW).key == deep
    change(place, f"anchor = anchor + 1 WHERE n_tokens = {deep.n_tokens}")
    assert backend.longest(keys, NOW) is None
    assert backend.longest(lower, NOW).key == deep
    assert backend.longest(bare(keys), NOW).key == deep
    publish(backend, replace(an_entry(99), key=near, blob=f"{near}.{99:016x}"))
    assert backend.longest(keys, NOW).key == near


def test_while_any_has_no_anchor_all_are_asked_for(place: PostgresPlace, backend: Any) -> None:
    """As a former release, or an archive, leaves them."""
    keys = a_plan().keys_deepest_first
    old, new = keys[700], keys[800]
    for number, key in enumerate([replace(old, anchor=None), new]):
        publish(backend, replace(an_entry(number), key=key, blob=f"{key}.{number:016x}"))
    publish(backend, an_entry(5, role=Role.NAMED))
    assert [row["anchor"] for row in place.rows()].count(None) == 1
    assert backend.longest(keys, NOW).key == old
    backend.delete(old, "a test")
    assert backend.longest(keys, NOW).key == new


def test_a_damaged_or_expired_state_is_passed_over(place: PostgresPlace, backend: Any) -> None:
    keys = a_plan().keys_deepest_first
    for number, at in enumerate((300, 301, 500)):
        key = keys[at]
        publish(backend, replace(an_entry(number), key=key, blob=f"{key}.{number:016x}"))
    change(place, f"labels = 'no JSON' WHERE n_tokens = {keys[300].n_tokens}")
    change(place, f"expires_at = {NOW} WHERE n_tokens = {keys[301].n_tokens}")
    assert backend.longest(keys, NOW).key == keys[500]
    assert backend.longest_within(keys, NOW, 60.0).key == keys[500]


def test_anchors_come_along_from_place_to_place(tmp_path: Path, place: PostgresPlace) -> None:
    keys = a_plan().keys_deepest_first
    with closing(open_file_backend(tmp_path / "near")) as near, closing(place.open()) as home:
        publish(near, replace(an_entry(0), key=keys[700], blob=f"{keys[700]}.{0:016x}"))
        (held,) = near.entries(EntryFilter())
        assert held.key.anchor == keys[700].anchor
        home.publish(held, [a_blob(held.key)])
    assert [row["anchor"] for row in place.rows()] == [keys[700].anchor]


def test_a_reading_leaves_its_anchors(tmp_path: Path, place: PostgresPlace) -> None:
    """Through a store with memory in front, the entry at home has what the key had."""
    key = a_plan().keys[650]
    with open_store(f"memory: {place.url}&find_ms=0") as store:
        store.backend.publish(replace(an_entry(0), key=key), [a_blob(key)], durable=True)
        assert store.flush(60.0)
    assert [row["anchor"] for row in place.rows()] == [key.anchor]
