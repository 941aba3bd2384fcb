"""A network between a fleet and its PostgreSQL that trickles, forgets and resets connections; and a
pooler in it: whatever comes, calls end in time, with what is right or with the error's name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from statestore import PutOutcome, StateStore, open_store
from statestore.backends.base import Backend
from statestore.backends.leases import Outcome
from statestore.backends.sql.fleet import FleetPlace, open_revisions
from statestore.entry import Change
from statestore.errors import UnavailableError
from tests.places.backend_places import (
    CREATED_AT,
    a_blob,
    a_key,
    an_entry,
    open_backend,
    publish,
)
from tests.places.poolers import pooled
from tests.places.postgres_servers import PostgresPlace
from tests.places.tcp_proxy import Proxy
from tests.statestore.backends.sql.postgres.test_postgres_faults import request

TIMEOUT_S = 1.0
ENDS_S = 20.0  # of a few calls, each of which ends 1.5 s late at most, or 2 s where it connects

CALLS: dict[str, Callable[[Backend], object]] = {
    "longest": lambda backend: backend.longest([a_key(0)], CREATED_AT),
    "usage": lambda backend: backend.usage(),
    "touch": lambda backend: backend.touch(an_entry(0), CREATED_AT, 0.0),
    "publish": lambda backend: publish(backend, an_entry(1)),
    "update": lambda backend: backend.update(a_key(0), Change(pinned=True)),
    "acquire": lambda backend: backend.leases and backend.leases.acquire(a_key(0), "me", 5.0),
}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[PostgresPlace]:
    place = PostgresPlace(tmp_path)
    yield place
    place.drop()


@pytest.fixture
def proxy(place: PostgresPlace) -> Iterator[Proxy]:
    with Proxy(place.server.port) as proxy:
        yield proxy


def url_by(place: PostgresPlace, port: int, **options: object) -> str:
    given = "".join(f"&{name}={value}" for name, value in options.items())
    return place.url.replace(f":{place.server.port}/", f":{port}/") + given


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_answer_that_drips_is_not_waited_for(
    place: PostgresPlace, proxy: Proxy, call: Callable[[Backend], object]
) -> None:
    """There is always a byte more, so nobody is ever silent."""
    backend = open_backend(url_by(place, proxy.port, timeout_s=TIMEOUT_S, find_ms=0))
    publish(backend, an_entry(0))
    proxy.drips = True
    began = time.monotonic()
    with pytest.raises(UnavailableError, match=r"no answer within|closed"):
        call(backend)
    assert time.monotonic() - began < ENDS_S
    proxy.drips = False
    call(backend)
    assert backend.longest([a_key(0)], CREATED_AT) is not None
    backend.close()


@pytest.mark.parametrize("way", ["drips", "half-open"])
def test_requests_go_on_without_the_store(place: PostgresPlace, proxy: Proxy, way: str) -> None:
    with open_store(url_by(place, proxy.port, timeout_s=TIMEOUT_S)) as store:
        assert request(store, 0) == (False, PutOutcome.PUBLISHED)
        assert request(store, 0) == (True, PutOutcome.PRESENT)
        if way == "half-open":
            proxy.lose()
        else:
            proxy.drips = True
        began = time.monotonic()
        for _ in range(10):
            assert request(store, 0) == (False, PutOutcome.DROPPED)
        assert time.monotonic() - began < ENDS_S
        proxy.drips = False
        wait_until_well(store)


def wait_until_well(store: StateStore) -> None:
    deadline = time.monotonic() + 60
    while request(store, 0) != (True, PutOutcome.PRESENT):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("asked", "replaces", "stored"),
    [
        (b"INSERT INTO entries", False, True),  # the one statement of a new entry
        (b"COMMIT\0", True, True),
        (b"UPDATE entries", True, False),
        (b"BEGIN", True, False),
    ],
)
def test_an_answer_that_is_lost_leaves_all_or_nothing(
    place: PostgresPlace, proxy: Proxy, asked: bytes, replaces: bool, stored: bool
) -> None:
    """The server has done it, and the client's connection is reset before it hears of it."""
    backend = open_backend(url_by(place, proxy.port, timeout_s=TIMEOUT_S, find_ms=0))
    if replaces:
        assert publish(backend, an_entry(0, expires_at=CREATED_AT - 1))
    entry = an_entry(0)
    proxy.loses_answer_to = asked
    with pytest.raises(UnavailableError):
        publish(backend, entry)
    assert proxy.loses_answer_to is None
    found = backend.longest([entry.key], CREATED_AT)
    assert (found is not None) == stored
    rows = {row["blob"] for row in place.query("SELECT blob FROM entries")}
    assert rows <= place.blob_names()
    assert len(place.blob_names() - rows) <= (stored and replaces)  # what was replaced
    assert publish(backend, an_entry(0)) == (not stored)
    found = backend.longest([entry.key], CREATED_AT)
    assert found is not None
    blob = backend.read(found)
    assert blob is not None
    assert bytes(blob) == a_blob(entry.key)
    backend.close()


def test_a_line_that_leads_nowhere_loses_no_release(place: PostgresPlace, proxy: Proxy) -> None:
    """Who waits hears nothing more, and looks now and then."""
    follower = open_backend(url_by(place, proxy.port, timeout_s=TIMEOUT_S, find_ms=0))
    leader = open_backend(place.url + "&find_ms=0")
    leader.leases.acquire(a_key(0), "leader", 60.0)
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(follower.leases.wait, a_key(0), 60.0)
        listening = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        while not place.query(listening):
            time.sleep(0.01)
        proxy.lose(newest=1)
        leader.leases.release(a_key(0), "leader", Outcome.PUBLISHED)
        began = time.monotonic()
        seen = waits.result()
    assert seen is not None
    assert seen.outcome is Outcome.PUBLISHED
    assert time.monotonic() - began < ENDS_S
    leader.close()
    follower.close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_pooler(place: PostgresPlace, mode: str) -> None:
    """Many threads of two stores over few connections: each call does what it should.

    By transactions a statement that was prepared is another client's on the next connection: with
    the same number of parameters it would be carried out in place of ours.
    """
    with pooled(place.server, mode, connections=8 if mode == "session" else 3) as port:
        url = url_by(place, port, timeout_s=30, find_ms=0, application_name="pooled")
        stores = [open_backend(url) for _ in range(2)]

        def work(number: int) -> None:
            backend: Any = stores[number % 2]
            for each in range(number, number + 200, 10):
                entry = an_entry(each)
                assert backend.longest([entry.key], CREATED_AT) is None
                assert backend.leases.acquire(entry.key, "me", 60.0).owner == "me"
                assert publish(backend, entry)
                found = backend.longest([a_key(10_000), entry.key], CREATED_AT)
                assert found == entry
                backend.touch(entry, CREATED_AT + 1, 1.0)
                assert backend.update(entry.key, Change(labels={"n": str(each)}))
                backend.leases.release(entry.key, "me", Outcome.PUBLISHED)
                if each % 3 == 0:
                    assert backend.delete(entry.key, "deleted")

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        rows = place.rows()
        assert {row["hits"] for row in rows} == {1}
        assert (
            len(rows)
            == stores[0].usage().entries
            == 80
            - sum(each % 3 == 0 for number in range(4) for each in range(number, number + 200, 10))
        )
        for backend in stores:
            backend.close()


def test_a_release_is_seen_behind_a_pooler(place: PostgresPlace) -> None:
    with pooled(place.server, "transaction") as port:
        url = url_by(place, port, timeout_s=30, find_ms=0)
        leader, follower = open_backend(url), open_backend(url)
        leader.leases.acquire(a_key(0), "leader", 60.0)
        release = threading.Timer(
            0.2, leader.leases.release, (a_key(0), "leader", Outcome.PUBLISHED)
        )
        release.start()
        began = time.monotonic()
        seen = follower.leases.wait(a_key(0), 60.0)
        assert seen is not None
        assert seen.outcome is Outcome.PUBLISHED
        assert time.monotonic() - began < ENDS_S
        release.join()
        leader.close()
        follower.close()


def test_an_upgrade_through_a_pooler(place: PostgresPlace) -> None:
    with pooled(place.server, "transaction") as port:
        where = FleetPlace.parse(url_by(place, port))
        with open_revisions(where) as revisions:
            revisions.downgrade("base")
            revisions.upgrade()
            assert revisions.status().standing == "current"
