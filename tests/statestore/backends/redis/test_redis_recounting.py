"""Sums made anew in steps: right whatever others do between two of them, and after a death."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from statestore.backends.redis import recounting
from statestore.backends.redis.address import Address
from statestore.backends.redis.keyspace import Keyspace
from statestore.backends.redis.recounting import recount
from statestore.backends.redis.server import Server
from statestore.backends.redis.shard import Command, call
from statestore.entry import Change, Entry, Role, Status
from statestore.keys import StateKey
from statestore.url import StoreURL
from tests.places.backend_places import CREATED_AT, a_key, an_entry, publish
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import running

NOW = CREATED_AT
SUMS = ("entries", "blob_bytes", "state_bytes", "quarantined", "pinned", "pinned_bytes")
ROOM = 30  # keys


@pytest.fixture
def base(place: RedisPlace) -> str:
    return Keyspace(place.prefix, 1).base_of(0)


class Meeting(Server):
    """Something happens after each of its first calls."""

    def __init__(self, place: RedisPlace, meets: Iterator[Callable[[], Any]]) -> None:
        url = StoreURL.parse(place.url)
        super().__init__(Address.of(url.scheme, url.netloc, url.path, url.options))
        self.meets = meets
        self.calls = 0

    def run(self, commands: Sequence[Command]) -> list[Any]:
        replies = super().run(commands)
        self.calls += 1
        next(self.meets, lambda: None)()
        return replies


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recounting, "STEP", 2)


def entry_of(number: int, dice: random.Random) -> Entry:
    """Many share an anchor, some have none."""
    anchor = dice.choice([None, number // 5, number // 5, 7, 7])
    key = replace(a_key(number), anchor=anchor)
    role = Role.NAMED if number % 11 == 0 else Role.SEGMENT
    return an_entry(number, key=key, role=role, namespace=f"tenant {number % 3}", blob_bytes=10)


def step(backend: Any, dice: random.Random) -> None:
    """Something that changes what is counted."""
    number = dice.randrange(ROOM)
    key = a_key(number)
    dice.choice(
        [
            lambda: publish(backend, entry_of(number, dice)),
            lambda: publish(backend, entry_of(number, dice)),
            lambda: backend.delete(key, "a test"),
            lambda: backend.update(key, Change(status=Status.QUARANTINED)),
            lambda: backend.update(key, Change(pinned=dice.random() < 0.5)),
            lambda: backend.touch(an_entry(number), NOW + dice.random(), dice.random()),
            lambda: backend.evict(10 * ROOM // 2, NOW, limit=2),
        ]
    )()


def steps(backend: Any, dice: random.Random, count: int) -> None:
    for _ in range(count):
        step(backend, dice)


def spoil(place: RedisPlace, base: str) -> None:
    with place.nodes[0].client() as client:
        client.hset(f"{base}totals", mapping={"entries": 777, "blob_bytes:nobody": 5})
        client.hset(f"{base}anchors", mapping={"": 777, "1234567": "#1234"})


def check(place: RedisPlace, base: str) -> None:
    """The sums and anchors tell of the rows that are there."""
    with place.nodes[0].client() as client:
        totals = {
            name.decode(): int(value)
            for name, value in client.hgetall(f"{base}totals").items()
            if name != b"age"
        }
        anchors: dict[bytes, bytes] = client.hgetall(f"{base}anchors")
        assert not client.exists(f"{base}recount", f"{base}recounted")
        assert max(client.ttl(f"{base}totals"), client.ttl(f"{base}anchors")) < 0
    rows = place.rows()
    expected: dict[str, int] = {}
    beside: dict[bytes, list[bytes]] = {}
    for row in rows:
        amounts = (1, row["blob_bytes"], row["state_bytes"], row["status"] == "quarantined",
                   row["pinned"], row["pinned"] * row["blob_bytes"])  # fmt: skip
        for whose in ("", f":{row['namespace']}"):
            for name, amount in zip(SUMS, amounts, strict=True):
                expected[name + whose] = expected.get(name + whose, 0) + amount
        if row["role"] != b"named":
            beside.setdefault(row["anchor"] or b"?", []).append(row["digest"][:4])
    assert {name: sum_ for name, sum_ in totals.items() if sum_} == {
        name: sum_ for name, sum_ in expected.items() if sum_
    }
    assert (anchors.pop(b""), anchors.pop(b"#")) == (b"%d" % len(rows), b"1")
    assert set(anchors) == set(beside)
    for anchor, names in beside.items():
        told = anchors[anchor]
        if told[:1] == b"#":
            assert sorted(told[at : at + 4] for at in range(1, len(told), 4)) == sorted(names)
        else:
            assert int(told) == len(names)
            assert anchor == b"?" or len(names) <= 30


def fill(backend: Any, dice: random.Random) -> None:
    for number in range(0, ROOM, 2):
        publish(backend, entry_of(number, dice))


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_changed_between_two_steps(
    place: RedisPlace, backend: Any, base: str, seed: int
) -> None:
    dice = random.Random(seed)
    fill(backend, dice)
    spoil(place, base)
    meets = [lambda: steps(backend, dice, 4)] * 7
    with closing(Meeting(place, iter(meets))) as meeting:
        recount(meeting, base)
        assert meeting.calls > 7
    check(place, base)
    steps(backend, dice, 20)
    check(place, base)


@pytest.mark.parametrize("seed", range(4))
def test_one_that_died_on_the_way(place: RedisPlace, backend: Any, base: str, seed: int) -> None:
    """The next goes on where it stopped; what it has left behind would expire."""
    dice = random.Random(seed)
    fill(backend, dice)
    spoil(place, base)

    def die() -> None:
        raise InterruptedError

    meeting = Meeting(place, iter([lambda: None] * seed + [die]))
    with closing(meeting), pytest.raises(InterruptedError):
        recount(meeting, base)
    with place.nodes[0].client() as client:
        for name in ("recount", "recounted"):
            assert 0 < client.pttl(base + name) <= recounting.KEPT_MS
    steps(backend, dice, 20)
    with closing(Meeting(place, iter(()))) as meeting:
        recount(meeting, base)
        assert meeting.calls <= 12
    check(place, base)


def test_the_highest_score_evicted_is_kept(place: RedisPlace, backend: Any, base: str) -> None:
    for number in range(8):
        publish(backend, an_entry(number, score=float(number + 1)))
    backend.evict(3000, NOW)
    with closing(Meeting(place, iter(()))) as meeting:
        recount(meeting, base)
    assert (backend.usage().entries, backend.usage().age) == (3, 5.0)


def test_an_entry_in_two_places_of_an_order_is_counted_once(
    place: RedisPlace, backend: Any, base: str
) -> None:
    """As a hand, or damage that was mended, leaves it."""
    fill(backend, random.Random(5))
    with place.nodes[0].client() as client:
        client.zadd(f"{base}tokens", {b"00" + a_key(2).hex.encode(): 0})
        client.zadd(f"{base}ranks", {b"tenant 2\x0010" + a_key(2).hex.encode(): 0})
        with closing(Meeting(place, iter(()))) as meeting:
            recount(meeting, base)
        check(place, base)
        backend.sweep(NOW, 1e9)
        assert client.zcard(f"{base}tokens") == client.zcard(f"{base}ranks") == ROOM // 2
    check(place, base)


def test_what_is_damaged_meanwhile_is_counted_again(
    place: RedisPlace, backend: Any, base: str
) -> None:
    """Its size when it was counted is not known when it goes."""
    fill(backend, random.Random(6))
    spoil(place, base)
    client = place.nodes[0].client()

    def damage() -> None:
        for key in place.keys("{*}:entry:*"):
            client.hset(key, "blob_bytes", "many")
        for number in range(0, ROOM, 2):
            backend.delete(a_key(number), "a test")

    with closing(Meeting(place, iter([lambda: None] * 3 + [damage]))) as meeting:
        recount(meeting, base)
    backend.sweep(NOW, 1e9)
    check(place, base)


def test_two_at_a_time_drive_one_count(place: RedisPlace, backend: Any, base: str) -> None:
    fill(backend, random.Random(1))
    spoil(place, base)
    with closing(Meeting(place, iter(()))) as one:
        other = Meeting(place, iter([lambda: recount(one, base)]))
        with closing(other):
            recount(other, base)
        assert (one.calls, other.calls) == (7, 2)
    check(place, base)


@pytest.mark.parametrize("lost", ["recount", "recounted", "totals", "anchors", "tokens"])
def test_what_a_server_evicts_meanwhile_hides_nothing(
    place: RedisPlace, backend: Any, base: str, lost: str
) -> None:
    dice = random.Random(2)
    fill(backend, dice)
    spoil(place, base)
    client = place.nodes[0].client()
    meets = iter([lambda: None] * 3 + [lambda: client.delete(base + lost)])
    with closing(Meeting(place, meets)) as meeting:
        recount(meeting, base)
    for number in range(0, ROOM, 2):
        key = a_key(number)
        asked = [replace(a_key(1000 + n), anchor=n // 8) for n in range(24)]
        anchor = next(row["anchor"] for row in place.rows() if row["digest"] == key.digest)
        mine = int.from_bytes(anchor, "big", signed=True) if anchor else None
        if mine is not None and number % 11:
            asked += [replace(a_key(2000 + n), anchor=mine) for n in range(8)]
            found = backend.longest([*asked, replace(key, anchor=mine)], NOW)
            assert found is not None
            assert found.key == key
    backend.sweep(NOW, 1e9)
    check(place, base)


def beside_one(number: int) -> Entry:
    return an_entry(number, key=replace(a_key(number), anchor=number // 5))


def hidden(backend: Any, numbers: Sequence[int]) -> list[int]:
    """Which of these a lookup by stretches does not find."""
    others = [replace(a_key(1000 + n), anchor=500 + n // 8) for n in range(24)]
    asked = {number: [*others, beside_one(number).key] for number in numbers}
    return [number for number, keys in asked.items() if backend.longest(keys, NOW) is None]


@pytest.mark.parametrize("missed", ["order lost", "put unknown"])
def test_what_is_not_met_is_not_hidden(
    place: RedisPlace, backend: Any, base: str, missed: str
) -> None:
    """The server drops the order that is gone through; an earlier build knows of no count."""
    for number in range(20):
        publish(backend, beside_one(number))
    client = place.nodes[0].client()

    def miss() -> None:
        if missed == "order lost":
            client.delete(f"{base}tokens")
            return
        cursor = client.hget(f"{base}recount", "cursor")
        client.hdel(f"{base}recount", "cursor")
        for number in range(20, 40):
            publish(backend, beside_one(number))
        client.hset(f"{base}recount", "cursor", cursor)

    with closing(Meeting(place, iter([lambda: None] * 5 + [miss]))) as meeting:
        recount(meeting, base)
    assert int(client.hget(f"{base}totals", "entries")) < client.zcard(f"{base}used")
    stored = range(20 if missed == "order lost" else 40)
    assert hidden(backend, stored) == []
    publish(backend, beside_one(50))
    backend.delete(a_key(50), "a test")
    assert hidden(backend, stored) == []
    backend.sweep(NOW, 1e9)
    check(place, base)
    assert hidden(backend, stored) == []


def test_what_the_server_evicted_is_believed_to_be_gone(
    place: RedisPlace, backend: Any, base: str
) -> None:
    """Neither the sums nor the orders tell of it, and lookups believe the names."""
    for number in range(20):
        publish(backend, beside_one(number))
    client = place.nodes[0].client()
    client.delete(*[f"{base}entry:{a_key(number).hex}" for number in range(0, 20, 3)])
    with closing(Meeting(place, iter(()))) as meeting:
        recount(meeting, base)
    check(place, base)
    for order in ("used", "order", "tokens"):
        assert client.zcard(base + order) == 13
    assert hidden(backend, range(20)) == list(range(0, 20, 3))


def test_what_the_server_evicted_behind_a_count_that_died(
    place: RedisPlace, backend: Any, base: str
) -> None:
    for number in range(20):
        publish(backend, beside_one(number))
    spoil(place, base)
    died = Meeting(place, iter([]))
    died.run([call(recounting.COUNT, base, "", 10, 1, recounting.KEPT_MS)])
    died.close()
    client = place.nodes[0].client()
    for member in client.zrange(f"{base}tokens", 0, 3):
        client.delete(f"{base}entry:{member[-64:].decode()}")
    backend.sweep(NOW, 1e9)
    check(place, base)
    assert backend.usage().entries == 16


def test_a_server_in_danish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lua compares as the server's locale does, where `aa` comes last; sorted sets do by bytes."""
    made = ("localedef", "-i", "da_DK", "-f", "UTF-8", tmp_path / "da_DK.UTF-8")
    if shutil.which("localedef") is None or subprocess.run(made, check=False).returncode > 1:
        pytest.skip("not run: no da_DK (apt-get install locales)")
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "da_DK.UTF-8")
    with running() as server:
        assert server.client().eval("return 'aa' < 'b' and 1 or 0", 0) == 0
        place = RedisPlace(server.url, [server], "danish")
        base = Keyspace(place.prefix, 1).base_of(0)
        with closing(place.open()) as backend:
            tokens = [bytes([0xAA + n // 16, n]) * 16 for n in range(32)]
            entries = [replace(beside_one(n), token_digest=one) for n, one in enumerate(tokens)]
            for entry in entries[:16]:
                publish(backend, entry)
            spoil(place, base)
            meets = [partial(publish, backend, entry) for entry in entries[16:]]
            with closing(Meeting(place, iter(meets))) as meeting:
                recount(meeting, base)
            check(place, base)


def test_a_sweep_beside_writers(place: RedisPlace, backend: Any, base: str) -> None:
    """It mends in full what it found wrong when it began."""
    fill(backend, random.Random(0))
    spoil(place, base)
    done = threading.Event()

    def write(seed: int) -> None:
        dice = random.Random(seed)
        with closing(place.open()) as mine:
            while not done.is_set():
                step(mine, dice)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(5):
            spoil(place, base)
            backend.sweep(NOW, 1e9)
    finally:
        done.set()
        for writer in writers:
            writer.join()
    check(place, base)


def test_sums_that_were_lost_are_made_anew_for_usage(
    place: RedisPlace, backend: Any, base: str
) -> None:
    fill(backend, random.Random(3))
    with place.nodes[0].client() as client:
        client.delete(f"{base}totals")
        client.set(f"{base}totals", "no hash")
    backend.touch(an_entry(0), NOW, 1.0)
    assert backend.usage().entries == ROOM // 2
    check(place, base)


def test_a_full_server_counts(place: RedisPlace, backend: Any, base: str) -> None:
    fill(backend, random.Random(4))
    spoil(place, base)
    with place.nodes[0].client() as client:
        client.config_set("maxmemory", 1)
        try:
            backend.sweep(NOW, 1e9)
        finally:
            client.config_set("maxmemory", 0)
    check(place, base)


def test_no_entry_is_no_trouble(place: RedisPlace, backend: Any, base: str) -> None:
    spoil(place, base)
    backend.sweep(NOW, 1e9)
    assert backend.usage().entries == 0
    key: StateKey = a_key(0)
    publish(backend, an_entry(0))
    assert backend.longest([key], NOW) is not None
    check(place, base)
