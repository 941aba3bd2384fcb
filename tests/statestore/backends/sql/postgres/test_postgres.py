"""The fleet's store on a real PostgreSQL: both contracts, the model, plans, URLs and secrets."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import event, text

from statestore import Identity, open_store
from statestore.backends.base import Backend
from statestore.backends.leases import Outcome
from statestore.backends.lookups import lookups_of
from statestore.backends.sql.backend import SqlBackend
from statestore.backends.sql.fleet import FleetPlace, open_fleet_backend
from statestore.backends.sql.lookups import SqlLookups
from statestore.backends.sql.sightings import SqlSightings
from statestore.backends.wrappers.budget import Budget
from statestore.backends.wrappers.budgeted import Budgeted
from statestore.entry import Candidate, Change, Entry, EntryFilter, Role
from statestore.errors import SettingsError, UnavailableError
from statestore.eviction import DEFAULT, make_policy
from statestore.keys import marks
from statestore.url import StoreURL, redacted
from tests.places.backend_places import (
    CREATED_AT,
    Place,
    a_blob,
    a_key,
    an_entry,
    digest,
    publish,
    publish_all,
)
from tests.places.postgres_servers import SECRET, PostgresPlace
from tests.statestore.contracts.test_backend_contract import BackendContract
from tests.statestore.contracts.test_backend_model import DisasterModel
from tests.statestore.contracts.test_eviction_contract import EvictionContract
from tests.statestore.contracts.test_lease_contract import LeaseContract
from tests.statestore.contracts.test_listing_contract import ListingContract
from tests.statestore.contracts.test_lookups_contract import LookupsContract
from tests.statestore.contracts.test_lookups_contract import bounded as bounded_lookups
from tests.statestore.contracts.test_sightings_contract import SightingsContract, bounded

ROWS = 20_000


@pytest.fixture
def place(tmp_path: Path) -> Iterator[PostgresPlace]:
    place = PostgresPlace(tmp_path / "a store with % and ?")
    yield place
    place.drop()


class TestPostgresBackend(BackendContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place


class TestPostgresListing(ListingContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place


class TestPostgresEviction(EvictionContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place

    def test_what_is_used_while_it_is_judged_stays(self, backend: Backend, place: Place) -> None:
        """By another process: a sample is not locked while it is judged."""
        for number in range(3):
            publish(backend, an_entry(number, blob_bytes=100, score=10.0 - number))
        with closing(place.open()) as other:

            def judge(entries: Sequence[Candidate | Entry], now: float) -> list[float]:
                other.touch(an_entry(0), now, 10.0)
                return [float(entry.key.n_tokens) for entry in entries]

            backend.evict(200, CREATED_AT + 100, judge=judge)
        assert a_key(0) in {entry.key for entry in backend.entries(EntryFilter())}

    def test_nobody_waits_for_what_stays(self, backend: Backend, place: Place) -> None:
        """While a judge thinks nothing is locked, and then what goes alone."""
        scores = [-1.0, 7.0, 8.0, 9.0]  # the first is only passing by
        for number, score in enumerate(scores):
            publish(backend, an_entry(number, blob_bytes=100, score=score))
        with closing(place.open()) as other:

            def judge(entries: Sequence[Candidate | Entry], _now: float) -> list[float]:
                for number in range(1, 4):
                    other.touch(an_entry(number), CREATED_AT + number, 5.0)
                return [float(entry.key.n_tokens) for entry in entries]

            assert backend.evict(200, CREATED_AT + 100, judge=judge).entries >= 1
        kept = {entry.key for entry in backend.entries(EntryFilter())}
        assert a_key(0) not in kept

    def test_many_evict_and_touch_at_once(self, backend: Backend, place: Place) -> None:
        """Together they remove what one would, and no note of a hit is lost to a lock."""
        publish_all(backend, [an_entry(number, blob_bytes=100) for number in range(60)])

        def judge(entries: Sequence[Candidate | Entry], _now: float) -> list[float]:
            return [float(entry.key.n_tokens) for entry in entries]

        def evict(_: int) -> int:
            with closing(place.open()) as other:
                gone = [other.evict(6000 - 100 * left, CREATED_AT, judge=judge) for left in steps]
            return sum(evicted.entries for evicted in gone)

        def touch(number: int) -> None:
            for _ in range(20):
                backend.touch(an_entry(number), CREATED_AT + 1, 1.0)

        steps = range(1, 31)
        with ThreadPoolExecutor(8) as threads:
            touching = [threads.submit(touch, 59 - number) for number in range(4)]
            assert sum(threads.map(evict, range(4))) == 30
            for each in touching:
                each.result()
        assert backend.usage().blob_bytes == 3000


class TestPostgresLeases(LeaseContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place


class TestPostgresSightings(SightingsContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place


class TestPostgresLookups(LookupsContract):
    @pytest.fixture
    def place(self, place: PostgresPlace) -> Place:
        return place


def test_rows_of_the_tally_are_bounded(place: PostgresPlace) -> None:
    with closing(place.open()) as backend:
        bounded_lookups(SqlLookups(backend._database, 10))


@pytest.mark.parametrize("name", ["".join(map(chr, range(200, 5000))), "a\0b", "\udcff"])
def test_a_namespace_that_no_catalog_keeps_is_in_no_others_way(
    place: PostgresPlace, name: str
) -> None:
    """Its lookups are counted as nobody's: an index of the server has no room for such a name."""
    with open_store(f"{place.url}&find_ms=0") as store:
        for identity in (Identity(digest("model")), Identity(digest("model"), name)):
            assert store.find(identity, [a_key(0)]) is None
        assert store._tally.flush(60.0)
        tally = lookups_of(store.backend)
        assert tally is not None
        assert {sums.namespace: sums.lookups for sums in tally.sums()} == {"default": 1, "": 1}


def test_the_newest_sightings_are_kept(place: PostgresPlace) -> None:
    with closing(place.open()) as backend:

        def rows() -> int:
            return int(place.query("SELECT count(*) AS rows FROM sightings")[0]["rows"])

        bounded(SqlSightings(backend._database, 100), rows)


class PostgresModel(DisasterModel):
    def __init__(self) -> None:
        super().__init__()
        self.backend.close()
        self.place = PostgresPlace(self.root / "fleet")
        self.backend = self.place.open()

    def connections(self) -> int:
        (row,) = self.place.query(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        )
        return int(row["count"])

    def teardown(self) -> None:
        super().teardown()
        self.place.drop()


TestPostgresModel = PostgresModel.TestCase
TestPostgresModel.settings = settings(max_examples=6, stateful_step_count=20, deadline=None)


def fill(place: PostgresPlace, rows: int) -> None:
    """So many entries, which the planner knows nothing of."""
    place.query(
        f"""
        WITH made AS (
            INSERT INTO entries
            SELECT sha256(n::text::bytea), n, 'default', 'f', sha256(('t' || n)::bytea), 'rwkv7',
                   'segment', 'blob' || n, 1, 2, false, 1, 0, n, 0, 0, false, {CREATED_AT} + n,
                   'ready', '', 'm', '{{}}'
            FROM generate_series(1, {rows}) AS n RETURNING 1
        ) SELECT count(*) FROM made
        """
    )


@pytest.fixture
def full(place: PostgresPlace) -> Iterator[SqlBackend]:
    """A store whose catalog has many rows, so that the planner has a choice."""
    fill(place, ROWS)
    with place.server.connect(place.database) as connection:
        connection.execute(
            "INSERT INTO departed (digest, n_tokens, reason, departed_at) "
            f"SELECT sha256(('d' || n)::bytea), n, '', n FROM generate_series(1, {ROWS}) AS n"
        )
        connection.execute("ANALYZE")
    backend = open_fleet_backend(FleetPlace.parse(place.url))
    yield backend
    backend.close()


def plans_of(
    place: PostgresPlace, backend: SqlBackend, call: Callable[[SqlBackend], Any]
) -> list[str]:
    """PostgreSQL's plan for each statement that `call` sends."""
    seen: list[tuple[str, Any]] = []

    def note(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if not many:
            seen.append((statement, parameters))

    reader, shortcut = backend._database._reader, backend._database._shortcut
    assert shortcut is not None
    rows = shortcut.rows

    def noted_rows(text: str, parameters: Any, until: float | None = None) -> Any:
        seen.append((text, parameters))
        return rows(text, parameters, until)

    event.listen(reader, "before_cursor_execute", note)
    shortcut.rows = noted_rows  # type: ignore[method-assign]
    call(backend)
    shortcut.rows = rows  # type: ignore[method-assign]
    event.remove(reader, "before_cursor_execute", note)
    with place.server.connect(place.database) as connection:
        explained = [
            connection.execute("EXPLAIN " + text, given).fetchall() for text, given in seen
        ]
    return ["\n".join(row["QUERY PLAN"] for row in rows) for rows in explained]


def test_the_longest_of_thousands_is_one_query(place: PostgresPlace, full: SqlBackend) -> None:
    publish(full, an_entry(4000))
    thousands = [a_key(number) for number in range(5000)]
    anchored = [replace(key, anchor=place // 64) for place, key in enumerate(thousands)]
    for keys in (thousands, thousands[:9], anchored):
        (plan,) = plans_of(place, full, lambda it, keys=keys: it.longest(keys, CREATED_AT))
        assert "ix_entries_lookup" in plan
        assert "Seq Scan on entries" not in plan


@pytest.mark.parametrize(
    ("anchor", "subqueries", "indexes"),
    [(None, 3, {"ix_entries_lookup"}), (3, 7, {"ix_entries_lookup", "ix_entries_anchor"})],
)
def test_a_lookup_needs_no_statistics(
    place: PostgresPlace, anchor: int | None, subqueries: int, indexes: set[str]
) -> None:
    """A server looks at a catalog that has just grown after a minute, or never."""
    with place.server.connect(place.database) as connection:
        connection.execute("ALTER TABLE entries SET (autovacuum_enabled = off)")
    fill(place, 800)
    with closing(open_fleet_backend(FleetPlace.parse(place.url))) as backend:
        keys = [replace(a_key(number), anchor=anchor) for number in range(4000)]
        (plan,) = plans_of(place, backend, lambda it: it.longest(keys, CREATED_AT))
    ways = re.findall(
        r"(?:Scan|Scan(?: Backward)? using (\w+)) on (?:entries|ix_entries_\w+)", plan
    )
    assert len(ways) == subqueries
    assert set(ways) == indexes, plan


@pytest.mark.parametrize(
    ("call", "index"),
    [
        (lambda it: next(it.entries(EntryFilter()), None), "ix_entries_used_at"),
        (
            lambda it: list(it.entries(EntryFilter(namespace="default", token_digest=digest("t")))),
            "ix_entries_token_digest",
        ),
        (
            lambda it: list(it.entries(EntryFilter(namespace="default", fingerprint=digest("f")))),
            "ix_entries_model",
        ),
        (lambda it: list(it.entries(EntryFilter(key_prefix="0123abc"))), "entries_pkey"),
        (lambda it: it.sweep(CREATED_AT, 0.0), "ix_entries_expires_at"),
        (lambda it: it.departed([a_key(0)]), "ix_departed_digest"),
        (lambda it: it.usage(), "Scan on namespace_totals"),
    ],
)
def test_no_query_scans_the_entries(
    place: PostgresPlace, full: SqlBackend, call: Callable[[SqlBackend], Any], index: str
) -> None:
    plans = plans_of(place, full, call)
    assert index in plans[0]
    assert not any("Seq Scan on entries" in plan for plan in plans)


@pytest.mark.parametrize(
    ("namespace", "index"),
    [(None, "ix_entries_eviction"), ("tenant", "ix_entries_namespace_eviction")],
)
def test_eviction_follows_its_indexes(
    place: PostgresPlace, full: SqlBackend, namespace: str | None, index: str
) -> None:
    """It reads what goes: no scan, no sort."""
    with place.server.connect(place.database) as connection:
        connection.execute("UPDATE entries SET namespace = 'tenant' WHERE n_tokens % 20 = 0")
        connection.execute("INSERT INTO namespace_totals VALUES ('tenant', 0, 1000, 1000, 0, 0, 0)")
        connection.execute("ANALYZE")
    left = full.usage(namespace).blob_bytes - 100
    plans = plans_of(place, full, lambda it: it.evict(left, CREATED_AT, namespace=namespace))
    expired, plan = [plan for plan in plans if "LockRows" in plan and "entries" in plan]
    assert re.search(r"Index Scan using ix_entries_(namespace_)?expires_at on entries", expired)
    assert f"Index Scan using {index} on entries" in plan
    assert "Sort" not in expired + plan
    assert not any("Seq Scan on entries" in plan for plan in plans)
    assert full.usage(namespace).entries == 900


def test_each_call_sends_one_statement_and_nothing_else(place: PostgresPlace) -> None:
    """No BEGIN and no COMMIT around it: each would be a round trip."""
    backend = open_fleet_backend(FleetPlace.parse(place.url))
    with place.server.connect() as connection:
        connection.execute(f"ALTER DATABASE {place.database} SET log_statement = 'all'")
    backend._database._reader.dispose()
    backend.longest([a_key(0)], CREATED_AT)
    for keys in ([a_key(0)], [a_key(0), a_key(1)]):
        ready = len(place.server.statements(place.database))
        backend.longest(keys, CREATED_AT)
        (sent,) = sent_after(place, ready)
        assert sent.split()[0] in ("SELECT", "WITH")
    backend.usage()  # on a connection of its own
    ready = len(place.server.statements(place.database))
    assert publish(backend, an_entry(0))
    looked, admitted = sent_after(place, ready)
    assert looked.startswith("SELECT")
    assert admitted.startswith("WITH admitted AS ( INSERT")
    backend.touch(an_entry(0), CREATED_AT, 1.0)
    assert len(sent_after(place, ready)) == 3
    assert backend.update(a_key(0), Change(labels={"a": "b"}))
    assert any("BEGIN ISOLATION LEVEL READ COMMITTED" in it for it in sent_after(place, ready))
    backend.close()


@pytest.fixture
def late(place: PostgresPlace) -> Iterator[None]:
    """The server's disk has nothing by itself for a while."""
    with place.server.connect() as connection:
        for setting in ("wal_writer_delay = '10s'", "wal_writer_flush_after = '1GB'"):
            connection.execute(f"ALTER SYSTEM SET {setting}")
        connection.execute("SELECT pg_reload_conf()")
        yield
        for name in ("wal_writer_delay", "wal_writer_flush_after"):
            connection.execute(f"ALTER SYSTEM RESET {name}")
        connection.execute("SELECT pg_reload_conf()")


def written(backend: SqlBackend) -> str:
    """Where the server's log ends."""
    ((end,),) = backend._database.rows(text("SELECT CAST(pg_current_wal_insert_lsn() AS text)"), {})
    return str(end)


def disk_has(backend: SqlBackend, end: str) -> bool:
    question = text("SELECT pg_current_wal_flush_lsn() > CAST(:at AS pg_lsn)")
    ((has,),) = backend._database.rows(question, {"at": end})
    return bool(has)


@pytest.mark.parametrize(
    ("fields", "durable", "waits"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"pinned": True}, False, True),
        ({"role": Role.NAMED}, False, True),
    ],
)
@pytest.mark.usefixtures("late")
def test_what_is_computed_again_does_not_wait_for_the_servers_disk(
    backend: SqlBackend, fields: dict[str, Any], durable: bool, waits: bool
) -> None:
    """But for what nobody can compute again, and what somebody wants to last."""

    def put(number: int) -> bool:
        """Whether the disk has it."""
        before = written(backend)
        entry = an_entry(number, **fields)
        assert backend.publish(entry, [a_blob(entry.key, entry.blob_bytes)], durable=durable)
        return disk_has(backend, before)

    waited = [put(number) for number in range(20)]
    assert all(waited) if waits else not all(waited)
    assert backend.usage().entries == 20


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("budget", [None, Budget(1000)])
def test_a_durable_put_waits_for_what_was_there_first(
    backend: SqlBackend, budget: Budget | None
) -> None:
    """Whoever put it may not have waited for the server's disk."""
    place = backend if budget is None else Budgeted(backend, budget, make_policy(DEFAULT))
    had = []
    for number in range(10):
        entry = an_entry(number)
        assert publish(place, entry)
        end = written(backend)
        had.append(disk_has(backend, end))
        assert not place.publish(entry, [a_blob(entry.key, entry.blob_bytes)], durable=True)
        assert disk_has(backend, end)
        assert backend.delete(entry.key, "deleted")
    assert not all(had)


def test_a_key_that_is_there_is_decided_by_a_transaction(backend: SqlBackend) -> None:
    """What is of no use any more is replaced; what is, stays; and totals are right each time."""
    assert publish(backend, an_entry(0, expires_at=CREATED_AT - 1))
    fresh = an_entry(0)
    assert publish(backend, fresh)
    assert not publish(backend, an_entry(0))
    assert backend.delete(fresh.key, "deleted")
    assert backend.departed([fresh.key])
    assert publish(backend, an_entry(0))
    assert not backend.departed([fresh.key])
    assert backend.usage().entries == 1
    assert backend.recount(mend=False)


def sent_after(place: PostgresPlace, count: int) -> list[str]:
    return place.server.statements(place.database)[count:]


def test_the_url_opens_the_place_again_and_has_no_secret(place: PostgresPlace) -> None:
    given = f"{place.url}&timeout_s=3.5&application_name=worker%201"
    parsed = FleetPlace.parse(given)
    assert parsed.catalog.password == SECRET
    assert parsed.blobs == place.root / "blobs"
    again = FleetPlace.parse(parsed.url)
    assert again.catalog.password is None
    assert again.catalog.set(password=SECRET) == parsed.catalog
    assert (again.blobs, again.timeout_s) == (parsed.blobs, 3.5)
    with open_store(place.url) as store:
        assert SECRET not in store.backend.url
        assert "***" not in store.backend.url
    for shown in (parsed, StoreURL.parse(place.url)):
        assert "s3cret" not in f"{shown!r} {shown}".replace(repr(parsed.url), "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace("s3cret", "s3cret-wrong"), "password authentication failed"),
        (lambda url: url.replace("s3cret", "s3cret%"), "password authentication failed"),
        (lambda url: url.split("?")[0], "blobs='' names no directory"),
        (lambda url: url.replace("file://", "file:"), "names no directory"),
        (lambda url: url.replace("file:///", "s3://bucket/"), "names no bucket"),
        (lambda url: url + "&endpoint=http://h:9000", "endpoint is for blobs=s3://"),
        (lambda url: "postgresql+psycopg://u:s3cret@h?blobs=file:///b", "names no database"),
        (lambda url: url + "&timeout_s=soon", "timeout_s='soon'"),
        (lambda url: url + "&timeout_s=0", "timeout_s='0'"),
        (lambda url: url + "&timeout_s=nan", "timeout_s='nan'"),
        (lambda url: url + "&codec=zip", "codec is one of"),
        (lambda url: url + "&blobs=file:///b", "blobs is given twice"),
        (lambda url: url + "&size=1", "unknown option 'size'"),
        (lambda url: url + "&password=s3cret", "unknown option 'password'"),
        (lambda url: url.replace("127.0.0.1:", "127.0.0.1:port"), "malformed"),
        (lambda url: url.replace("127.0.0.1", "s3cret@127.0.0.1"), "malformed"),
        (lambda url: url.replace("127.0.0.1", "[127.0.0.1"), "IPv6"),
        (lambda url: url.replace("+psycopg", "+psycopg2"), "no backend for postgresql"),
    ],
)
def test_a_bad_url_is_named_without_its_secret(
    place: PostgresPlace,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[str], str],
    words: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises((SettingsError, UnavailableError), match=words) as caught:
        open_store(change(place.url))
    told = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in told
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@host/0", "redis://:***@host/0"),
        ("postgresql+psycopg://u:p@ss/w@h/d?x=1", "postgresql+psycopg://u:***@h/d?x=1"),
        ("x://h/d?password=pw&y=1", "x://h/d?password=***&y=1"),
        ("x://h/d?y=1&sslpassword=pw", "x://h/d?y=1&sslpassword=***"),
        ("file:///a:b@c", "file:///a:b@c"),
        ("./states", "./states"),
    ],
)
def test_redacted(url: str, shown: str) -> None:
    assert redacted(url) == shown


def test_a_user_with_the_rights_that_are_named(place: PostgresPlace) -> None:
    """What `docs/operating.md` says; everything but upgrades."""
    name = f"u_{place.database}"
    with place.server.connect(place.database) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'word'")
        for right in (
            "SELECT, INSERT, UPDATE, DELETE ON ALL TABLES",
            "USAGE ON ALL SEQUENCES",
        ):
            connection.execute(f"GRANT {right} IN SCHEMA public TO {name}")
    parsed = FleetPlace.parse(place.url)
    with closing(
        open_fleet_backend(
            replace(parsed, catalog=parsed.catalog.set(username=name, password="word"))
        )
    ) as backend:
        entry = an_entry(0)
        assert publish(backend, entry)
        assert backend.longest([entry.key], CREATED_AT) == entry
        backend.touch(entry, CREATED_AT, 1.0)
        assert backend.leases.acquire(entry.key, "me", 10.0).owner == "me"
        backend.leases.release(entry.key, "me", Outcome.PUBLISHED)
        assert backend.leases.wait(entry.key, 1.0) is not None
        assert backend.sightings is not None
        backend.sightings.note(marks([digest("a chunk's end")]))
        assert backend.evict(0, CREATED_AT).entries == 1
        assert backend.departed([entry.key])
        backend.sweep(CREATED_AT, 0.0)
        assert backend.recount(mend=True)
    with place.server.connect(place.database) as connection:
        connection.execute(f"DROP OWNED BY {name}")
        connection.execute(f"DROP ROLE {name}")


def test_a_unix_socket(place: PostgresPlace) -> None:
    url = place.url.replace(f"127.0.0.1:{place.server.port}", "")
    url += f"&host={place.server.root}&port={place.server.port}"
    with open_store(url) as store:
        assert store.usage().entries == 0
        assert FleetPlace.parse(store.backend.url).catalog.query["host"] == str(place.server.root)


def test_the_first_to_open_an_empty_store_makes_its_directory(place: PostgresPlace) -> None:
    blobs = place.root / "blobs"
    assert not blobs.exists()
    backend = place.open()
    assert blobs.stat().st_mode & 0o777 == 0o700
    assert publish(backend, an_entry(0))
    backend.close()


def test_a_directory_that_is_not_mounted_is_named(place: PostgresPlace) -> None:
    backend = place.open()
    publish(backend, an_entry(0))
    backend.close()
    (place.root / "blobs").rename(place.root / "elsewhere")
    with pytest.raises(UnavailableError, match=r"blobs is not there.* is it mounted\?"):
        place.open()
    assert not (place.root / "blobs").exists()


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://u:s3cret@127.0.0.1:1/d?blobs=file://{tmp_path}"
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1/d: .*look at the server") as caught:
        open_store(url)
    assert "s3cret" not in str(caught.value)


def test_the_driver_need_not_be_named(place: PostgresPlace) -> None:
    url = place.url.replace("postgresql+psycopg://", "postgresql://")
    assert url != place.url
    with open_store(f"{url}&find_ms=0") as store:
        assert store.usage().entries == 0
        assert store.backend.url.startswith("postgresql+psycopg://")
