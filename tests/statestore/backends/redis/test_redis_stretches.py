"""Long prompts in Redis: asked for stretch by stretch, and found as if each key was asked for,
whatever the server, a hand or an earlier release did to what says which stretches are there."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from statestore.backends.redis.search import LONG
from statestore.backends.redis.sums import NAMED
from statestore.entry import Change, Entry, EntryFilter, Role, Status
from statestore.keys import ChunkRule, Plan, StateKey, plan
from tests.places.backend_places import CREATED_AT, a_blob, an_entry, publish
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import RedisServer

NOW = CREATED_AT
CHUNKS = 700


def a_plan(shared: int = CHUNKS, other: int = 0) -> Plan:
    """A prompt of 700 chunks, of which the first `shared` are those of every other such one."""
    rule = ChunkRule(chunk=2, min_chunk=1)
    return plan([[7, 8] * shared + [9, other] * (CHUNKS - shared)], bytes(32), rule)


KEYS = a_plan().keys_deepest_first


def entry_of(key: StateKey, **fields: Any) -> Entry:
    return replace(an_entry(key.n_tokens, **fields), key=key, blob=f"{key}.{key.n_tokens:016x}")


def asked_for(server: RedisServer, lookup: Callable[[], Any]) -> tuple[Any, int]:
    """What the lookup gives, and the runs of keys that it asked for."""
    with server.client() as client:
        client.config_resetstat()
        found = lookup()
        return found, client.info("commandstats").get("cmdstat_exists", {"calls": 0})["calls"]


Beside = dict[bytes, int | tuple[bytes, ...]]


def anchors(place: RedisPlace, name: str = "anchors") -> Beside:
    """What the hash holds: numbers, and beginnings of digests in order."""
    with place.nodes[0].client() as client:
        kept: dict[bytes, bytes] = client.hgetall(f"{place.prefix}:1:{{00}}:{name}")  # type: ignore[assignment]
    assert int(kept.pop(b"#", 0)) == (1 if b"" in kept else 0)
    return {anchor: beside_in(value) for anchor, value in kept.items()}


def beside_in(value: bytes) -> int | tuple[bytes, ...]:
    if value[:1] != b"#":
        return int(value)
    assert len(value) % 4 == 1
    return tuple(sorted(value[at : at + 4] for at in range(1, len(value), 4)))


def counted(place: RedisPlace, numbers: frozenset[bytes] = frozenset()) -> Beside:
    """What `anchors` should hold, by the entries; of these anchors the numbers."""
    rows = place.rows()
    beside: dict[bytes, list[bytes]] = defaultdict(list)
    for row in rows:
        if row["role"] != b"named":
            beside[row.get("anchor") or b"?"].append(row["digest"][:4])
    told = {
        anchor: len(names) if anchor in numbers | {b"?"} else tuple(sorted(names))
        for anchor, names in beside.items()
    }
    return {b"": len(rows), **told}


def test_found_as_if_each_key_was_asked_for(backend: Any) -> None:
    dice = random.Random(3)
    keys = a_plan(350, 1).keys_deepest_first
    elsewhere = a_plan(200, 2).keys
    stored: dict[StateKey, bool] = {}
    for number, at in enumerate([0, *dice.sample(range(1, CHUNKS), 15)]):
        key = keys[at] if number % 2 else elsewhere[at]
        publish(backend, entry_of(key, expires_at=NOW if number % 5 == 2 else None))
        if number % 3 == 0:
            backend.update(key, Change(status=Status.QUARANTINED, reason="a test"))
        stored[key] = number % 3 != 0 and number % 5 != 2
    finds = 0
    for _ in range(80):
        first = dice.choice([0, dice.randrange(CHUNKS - 1)])
        asked = keys[first : dice.randrange(first + 1, CHUNKS + 1)]
        if dice.random() < 0.3:
            asked = tuple(key for key in asked if dice.random() < 0.7)
        expected = next((key for key in asked if stored.get(key)), None)
        bare = [replace(key, anchor=None) for key in asked]
        for given in (asked, bare, [*bare[:1], *asked[1:]]):
            found = backend.longest(given, NOW)
            assert (found and found.key) == expected
        finds += expected is not None
    assert 10 < finds < 80


def test_the_deepest_of_many_neighbours(backend: Any) -> None:
    for at in range(100, 164):
        publish(backend, entry_of(KEYS[at]))
    for at in range(100, 163):
        assert backend.longest(KEYS, NOW).key == KEYS[at]
        backend.update(KEYS[at], Change(status=Status.QUARANTINED, reason="a test"))
    assert backend.longest_within(KEYS, NOW, 60.0).key == KEYS[163]


def test_only_stretches_that_have_an_entry_are_asked_for(server: RedisServer, backend: Any) -> None:
    publish(backend, entry_of(a_plan(100, 5).keys[-1]))
    assert asked_for(server, lambda: backend.longest(KEYS, NOW)) == (None, 0)
    publish(backend, entry_of(KEYS[300]))
    found, runs = asked_for(server, lambda: backend.longest(KEYS, NOW))
    assert found.key == KEYS[300]
    assert found.key.anchor == KEYS[300].anchor
    assert runs == 0  # what lies beside is known by name
    few = KEYS[: LONG - 1]
    assert asked_for(server, lambda: backend.longest(few, NOW)) == (None, 1)


def test_the_counts_are_those_of_the_entries(place: RedisPlace, backend: Any) -> None:
    dice = random.Random(5)
    keys = KEYS[:200]
    backend.publish(entry_of(keys[0], role=Role.NAMED), [a_blob(keys[0])])
    for step in range(300):
        key = dice.choice(keys)
        entry = entry_of(replace(key, anchor=None) if dice.random() < 0.1 else key)
        dice.choice(
            [
                lambda: publish(backend, entry),  # noqa: B023
                lambda: backend.delete(key, "a test"),  # noqa: B023
                lambda: backend.touch(entry, NOW, 1.0),  # noqa: B023
                lambda: backend.update(key, Change(status=Status.QUARANTINED)),  # noqa: B023
                lambda: backend.update(key, Change(pinned=True)),  # noqa: B023
            ]
        )()
        if step % 50 == 0:
            assert anchors(place) == counted(place)
    assert len(place.rows()) > 20
    assert anchors(place) == counted(place)
    backend.evict(3000, NOW)
    backend.sweep(NOW, 0.0)
    assert anchors(place) == counted(place)
    for entry in list(backend.entries(EntryFilter())):
        backend.delete(entry.key, "a test")
    assert anchors(place) == {b"": 0}


def test_many_beside_one_anchor_are_a_number(
    server: RedisServer, place: RedisPlace, backend: Any
) -> None:
    """Names as long as they are few, and again once all have gone."""
    keys = [key for key in KEYS if key.anchor == KEYS[300].anchor][10:30]
    anchor = anchors_of(KEYS[300])
    for stored in range(1, 20):
        publish(backend, entry_of(keys[20 - stored]))
        assert anchors(place) == counted(place, frozenset({anchor} if stored > NAMED else ()))
        found, runs = asked_for(server, lambda: backend.longest(KEYS, NOW))
        assert (found.key, runs > 0) == (keys[20 - stored], stored > NAMED)
    for gone in range(1, 20):
        assert backend.longest(KEYS, NOW).key == keys[gone]
        assert backend.delete(keys[gone], "a test")
        assert anchors(place) == counted(place, frozenset({anchor}))
    publish(backend, entry_of(keys[0]))
    assert anchors(place) == counted(place) == {b"": 1, anchor: (keys[0].digest[:4],)}


def test_two_of_one_name(place: RedisPlace, backend: Any) -> None:
    key = KEYS[300]
    other = replace(key, digest=key.digest[:4] + bytes(28))
    for one in (key, other):
        publish(backend, entry_of(one))
    assert anchors(place) == counted(place)
    asked = (*KEYS[:300], other, *KEYS[300:])
    assert backend.longest(asked, NOW).key == other
    backend.delete(other, "a test")
    assert backend.longest(asked, NOW).key == key
    backend.delete(key, "a test")
    assert anchors(place) == {b"": 0}


@pytest.mark.parametrize("spoil", ["evicted", "quarantined", "expired"])
def test_what_is_named_and_of_no_use(place: RedisPlace, backend: Any, spoil: str) -> None:
    """The next beside the same anchor is found."""
    first, second = KEYS[300], KEYS[303]
    assert first.anchor == second.anchor
    publish(backend, entry_of(first, expires_at=NOW if spoil == "expired" else None))
    publish(backend, entry_of(second))
    if spoil == "quarantined":
        backend.update(first, Change(status=Status.QUARANTINED))
    if spoil == "evicted":
        place.at("", lambda node: node.delete(*place.keys(f"{{*}}:entry:{first.hex}")))
    assert backend.longest(KEYS, NOW).key == second
    publish(backend, replace(entry_of(first), blob=f"{first}.again"))
    assert backend.longest(KEYS, NOW).key == first
    backend.delete(first, "a test")
    assert backend.longest(KEYS, NOW).key == second


def make_numbers(place: RedisPlace) -> None:
    """As an earlier build would have written `anchors`."""
    name = f"{place.prefix}:1:{{00}}:anchors"
    with place.nodes[0].client() as client:
        kept: dict[bytes, bytes] = client.hgetall(name)  # type: ignore[assignment]
        del kept[b"#"]
        numbers = {
            anchor: len(value) // 4 if value[:1] == b"#" else int(value)
            for anchor, value in kept.items()
        }
        client.delete(name)
        client.hset(name, mapping=numbers)  # type: ignore[arg-type]


def test_numbers_of_an_earlier_build(server: RedisServer, place: RedisPlace, backend: Any) -> None:
    for at in (300, 303, 500):
        publish(backend, entry_of(KEYS[at]))
    make_numbers(place)
    publish(backend, entry_of(KEYS[100]))
    assert backend.longest(KEYS, NOW).key == KEYS[100]
    backend.delete(KEYS[100], "a test")
    for at in (300, 303, 500):
        found, runs = asked_for(server, lambda: backend.longest(KEYS, NOW))
        assert (found.key, 0 < runs < 20) == (KEYS[at], True)
        if at == 300:
            backend.delete(KEYS[300], "a test")
            publish(backend, entry_of(KEYS[301]))
            backend.delete(KEYS[301], "a test")
        if at == 303:
            backend.update(KEYS[303], Change(status=Status.QUARANTINED))
    backend.sweep(NOW, 0.0)
    assert anchors(place) == counted(place)
    found, runs = asked_for(server, lambda: backend.longest(KEYS, NOW))
    assert (found.key, runs) == (KEYS[500], 0)


def no_anchors(client: Any, base: str) -> None:
    client.delete(f"{base}anchors")


def no_totals(client: Any, base: str) -> None:
    client.delete(f"{base}totals")


def neither(client: Any, base: str) -> None:
    client.delete(f"{base}anchors", f"{base}totals")


def a_string(client: Any, base: str) -> None:
    client.set(f"{base}anchors", "no hash")


def a_word(client: Any, base: str) -> None:
    client.hset(f"{base}anchors", "", "many")


@pytest.mark.parametrize("lose", [no_anchors, no_totals, neither, a_string, a_word])
def test_what_is_lost_hides_nothing(
    server: RedisServer, place: RedisPlace, backend: Any, lose: Callable[[Any, str], None]
) -> None:
    """As by a server that evicts, or a hand; until `gc`, every key is asked for."""
    for at in (300, 500):
        publish(backend, entry_of(KEYS[at]))
    with server.client() as client:
        lose(client, f"{place.prefix}:1:{{00}}:")
    assert backend.longest(KEYS, NOW).key == KEYS[300]
    publish(backend, entry_of(KEYS[100]))
    backend.delete(KEYS[100], "a test")
    publish(backend, entry_of(KEYS[200]))
    assert backend.longest(KEYS, NOW).key == KEYS[200]
    assert backend.longest(KEYS[201:], NOW).key == KEYS[300]
    assert backend.delete(KEYS[200], "a test")
    assert backend.longest(KEYS, NOW).key == KEYS[300]
    backend.sweep(NOW, 0.0)
    assert anchors(place) == counted(place)
    found, runs = asked_for(server, lambda: backend.longest(KEYS, NOW))
    assert (found.key, runs < 12) == (KEYS[300], True)


def test_half_a_name_is_none(place: RedisPlace, backend: Any) -> None:
    """A hand's: all keys of that stretch are asked for, and who writes beside it drops the hash."""
    for at in (300, 500):
        publish(backend, entry_of(KEYS[at]))
    with place.nodes[0].client() as client:
        name, anchor = f"{place.prefix}:1:{{00}}:anchors", anchors_of(KEYS[300])
        client.hset(name, anchor, b"#" + KEYS[300].digest[:2])
        assert backend.longest(KEYS, NOW).key == KEYS[300]
        publish(backend, entry_of(KEYS[303]))
        assert not client.exists(name)
    backend.delete(KEYS[300], "a test")
    assert backend.longest(KEYS, NOW).key == KEYS[303]
    backend.sweep(NOW, 0.0)
    assert anchors(place) == counted(place)


def test_entries_that_the_server_evicted(
    server: RedisServer, place: RedisPlace, backend: Any
) -> None:
    for at in (100, 300, 500):
        publish(backend, entry_of(KEYS[at]))
    (evicted,) = place.keys(f"{{*}}:entry:{KEYS[100].hex}")
    server.client().delete(evicted)
    assert backend.longest(KEYS, NOW).key == KEYS[300]
    backend.sweep(NOW, 0.0)
    assert anchors(place) == counted(place)


def test_a_flushed_server_begins_anew(server: RedisServer, place: RedisPlace, backend: Any) -> None:
    publish(backend, entry_of(KEYS[100]))
    server.client().flushall()
    assert asked_for(server, lambda: backend.longest(KEYS, NOW)) == (None, 11)
    publish(backend, entry_of(KEYS[300]))
    assert anchors(place) == counted(place)
    assert backend.longest(KEYS, NOW).key == KEYS[300]


def test_while_any_has_no_anchor_all_are_asked_for(server: RedisServer, backend: Any) -> None:
    """As an archive, or an earlier release, leaves them."""
    old, new = KEYS[300], KEYS[500]
    publish(backend, entry_of(replace(old, anchor=None)))
    publish(backend, entry_of(new))
    assert backend.longest(KEYS, NOW).key == old
    backend.delete(old, "a test")
    found, runs = asked_for(server, lambda: backend.longest(KEYS, NOW))
    assert (found.key, runs < 12) == (new, True)


def make_old(place: RedisPlace) -> None:
    """As an earlier release would have written it."""
    with place.nodes[0].client() as client:
        for key in place.keys("{*}:entry:*"):
            kept: dict[bytes, bytes] = client.hgetall(key)  # type: ignore[assignment]
            del kept[b"anchor"]
            kept[b"blob"] = key[-64:].encode() + kept[b"blob"]
            client.delete(key)
            client.hset(key, mapping=kept)  # type: ignore[arg-type]
            assert client.object("ENCODING", key) == b"hashtable"
        client.delete(f"{place.prefix}:1:{{00}}:anchors")


def test_a_store_of_an_earlier_release(
    server: RedisServer, place: RedisPlace, backend: Any
) -> None:
    entries = [entry_of(KEYS[at], score=float(at)) for at in (100, 200, 300, 400, 500)]
    for entry in entries:
        publish(backend, entry)
    make_old(place)
    assert backend.longest(KEYS, NOW) == entries[0]
    assert backend.read(entries[0]) == a_blob(KEYS[100])
    assert not publish(backend, entries[0])  # it is there
    assert backend.update(KEYS[100], Change(pinned=True), blob=entries[0].blob)
    assert not backend.delete(KEYS[200], "a test", blob=f"{KEYS[200]}.other")
    assert backend.delete(KEYS[200], "a test", blob=entries[1].blob)
    assert backend.evict(3000, NOW).entries == 1  # and not what is merely old
    publish(backend, entry_of(KEYS[50]))
    assert [backend.longest(KEYS[at:], NOW).key for at in (0, 51, 301)] == [
        KEYS[50],
        KEYS[100],
        KEYS[400],
    ]
    with server.client() as client:
        client.hset(f"{place.prefix}:1:{{00}}:anchors", "left alone", 1)
    assert backend.sweep(NOW, 0.0).blobs == 0
    left = {entry.key: entry for entry in backend.entries(EntryFilter())}
    assert set(left) == {KEYS[at] for at in (50, 100, 400, 500)}
    assert all(backend.read(entry) == a_blob(key) for key, entry in left.items())
    assert left[KEYS[400]] == entries[3]
    kept = anchors(place)
    assert kept.pop(b"left alone") == 1  # one by one: nothing was summed anew in one long step
    assert kept == counted(place) == {b"": 4, b"?": 3, anchors_of(KEYS[50]): (KEYS[50].digest[:4],)}
    with server.client() as client:
        for key in place.keys("{*}:entry:*"):
            assert client.object("ENCODING", key) == b"listpack"
    for at in (100, 400, 500):
        backend.delete(KEYS[at], "a test")
    assert asked_for(server, lambda: backend.longest(KEYS[60:], NOW)) == (None, 0)


def anchors_of(key: StateKey) -> bytes:
    assert key.anchor is not None
    return key.anchor.to_bytes(8, "big", signed=True)


def test_what_an_earlier_release_put_beside_is_found(
    server: RedisServer, place: RedisPlace, backend: Any
) -> None:
    """It counts in the totals alone; so they no longer agree."""
    for at in (300, 500):
        publish(backend, entry_of(KEYS[at]))
    publish(backend, entry_of(KEYS[100]))
    with server.client() as client:
        name = f"{place.prefix}:1:{{00}}:anchors"
        client.hincrby(name, "", -1)
        client.hdel(name, anchors_of(KEYS[100]))  # type: ignore[arg-type]
    assert backend.longest(KEYS, NOW).key == KEYS[100]
    backend.sweep(NOW, 0.0)
    assert anchors(place) == counted(place)


def test_an_entry_lies_in_one_piece(server: RedisServer, place: RedisPlace, backend: Any) -> None:
    """Redis takes thrice the memory for a hash of which one value is longer than 64 bytes."""
    entry = entry_of(KEYS[0], expires_at=NOW + 1, score=1.5)
    publish(backend, entry)
    backend.touch(entry, NOW + 0.123456, 1234567890.123456, memo="1.5 2.5 3.5")
    (key,) = place.keys("{*}:entry:*")
    with server.client() as client:
        assert client.object("ENCODING", key) == b"listpack"
    whole = replace(entry, blob=KEYS[0].hex)  # a name may be the digest alone
    backend.delete(KEYS[0], "a test")
    publish(backend, whole)
    assert backend.longest(KEYS[:1], NOW) == whole
    assert backend.read(whole) == a_blob(KEYS[0])
