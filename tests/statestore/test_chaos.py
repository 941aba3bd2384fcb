"""Writers, readers, evictors and operators' commands over every kind of place, all at once, killed
at random: no wrong state, no torn read, no orphan that stays, and budgets kept.

TEST_CHAOS_S says for how long at each place; minutes of it are ``make test-chaos``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from statestore import StateStore, open_store
from statestore.entry import Entry, Status
from statestore.keyring import write_key_file
from tests.checkout import ROOT
from tests.places.backend_places import FilePlace
from tests.places.postgres_servers import PostgresPlace, wait_for_the_dead
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import running, running_cluster, wait_until
from tests.places.s3_servers import ObjectPlace
from tests.statestore.backends.redis.test_redis_concurrency import connections
from tests.statestore.workers.chaos_parts import OURS, TENANT, is_right, namespace_of, numbers, put
from tests.statestore.workers.forked import command

SECONDS = float(os.environ.get("TEST_CHAOS_S", "2"))
#: Larger where there is the time to fill it: then a state has several parts in Redis.
BUDGET = 144_000_000 if SECONDS >= 30 else 4_000_000
ABOVE = 1.05
WAIT_S = 60.0
#: What is late on a busy machine is not dead: deadlines have tests of their own.
OPTIONS = f"budget={BUDGET}&budget.{TENANT}={BUDGET // 4}&find_ms=30000&fetch_ms=30000"
PLACES = (
    *("file", "encrypted file", "redis", "cluster", "postgresql", "objects", "tiers"),
    "tiers over redis",
)


@dataclass
class Stage:
    """A store's URL, raw access to what lies there, and how the dead fall silent."""

    url: str
    place: Any
    silent: Callable[[], object] = lambda: None
    whole: Callable[[], bool] = lambda: True  # by the place's own tools


def over_a_file(stack: ExitStack, root: Path) -> Stage:
    def whole() -> bool:
        with closing(sqlite3.connect(root / "store" / "catalog.sqlite3")) as connection:
            return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    place = FilePlace(root / "store")
    return Stage(f"{place.root.as_uri()}?{OPTIONS}", place, whole=whole)


def over_an_encrypted_file(stack: ExitStack, root: Path) -> Stage:
    write_key_file(root / "keys")
    stage = over_a_file(stack, root)
    return replace(stage, url=f"{stage.url}&keys={root / 'keys'}")


def over_redis(stack: ExitStack, root: Path) -> Stage:
    server = stack.enter_context(running())
    return on_servers(RedisPlace(server.url, [server], "chaos"))


def over_a_cluster(stack: ExitStack, root: Path) -> Stage:
    nodes = stack.enter_context(running_cluster())
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
    return on_servers(RedisPlace(f"redis+cluster://{hosts}", nodes, "chaos"))


def on_servers(place: RedisPlace) -> Stage:
    before = connections(place)
    return Stage(
        f"{place.url}&{OPTIONS}",
        place,
        lambda: wait_until(lambda: connections(place) <= before, "the last of the killed"),
    )


def over_postgres(stack: ExitStack, root: Path) -> Stage:
    return on_postgres(stack, PostgresPlace(root / "store", timeout_s="30"))


def over_objects(stack: ExitStack, root: Path) -> Stage:
    return on_postgres(stack, ObjectPlace(root / "store", timeout_s="30"))


def on_postgres(stack: ExitStack, place: PostgresPlace) -> Stage:
    def whole() -> bool:
        log = (place.server.root / "log").read_text()
        return f"{place.database}|ERROR:  deadlock detected" not in log

    stack.callback(place.drop)
    return Stage(f"{place.url}&{OPTIONS}", place, lambda: wait_for_the_dead(place), whole)


def over_tiers(stack: ExitStack, root: Path) -> Stage:
    home = over_a_file(stack, root)
    return replace(home, url=f"memory:?budget={BUDGET // 20} {home.url}")


def over_tiers_of_servers(stack: ExitStack, root: Path) -> Stage:
    """A directory that all on a host share, ahead of a server."""
    home = over_redis(stack, root)
    near = f"{(root / 'near').as_uri()}?budget={BUDGET // 10}"
    return replace(home, url=f"{near} {home.url}")


STAGES = dict(
    zip(
        PLACES,
        (
            *(over_a_file, over_an_encrypted_file, over_redis, over_a_cluster, over_postgres),
            *(over_objects, over_tiers, over_tiers_of_servers),
        ),
        strict=True,
    )
)


@pytest.fixture(params=PLACES)
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield STAGES[request.param](stack, tmp_path)


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """What was met at each place, shown in the end."""
    rows: list[str] = []
    yield rows
    names = ["writes", "reads", "hits", "kills", "commands", "failed", "orphans"]
    names += ["highest", "wrong", "torn", "slowest"]
    print("\n" + " " * 18 + " ".join(f"{name:>8}" for name in names))
    print("\n".join(rows))


@pytest.mark.timeout(SECONDS + 300)
def test_killed_at_random(stage: Stage, table: list[str], request: pytest.FixtureRequest) -> None:
    open_store(stage.url).close()
    seen = met(stage.url)
    stage.silent()
    orphans = len(stage.place.blob_names() - named(stage.place))
    highest = seen["highest"] / BUDGET
    counts = [seen[name] for name in ("writes", "reads", "hits", "kills", "commands", "failed")]
    shares = f"{100 * highest:7.1f}% {seen['wrong']:8.0f} {seen['torn']:8.0f}"
    table.append(
        f"{request.node.callspec.params['stage']:<18}"
        + " ".join(f"{count:8.0f}" for count in [*counts, orphans])
        + f" {shares} {seen['slowest_s']:7.2f}s"
    )
    assert (seen["wrong"], seen["torn"]) == (0, 0)
    assert 0.9 < highest <= ABOVE, f"{100 * highest:.1f} % of the budget"
    assert seen["highest_of_tenant"] <= ABOVE * BUDGET / 4
    settle(stage)


def met(url: str) -> dict[str, float]:
    """What the processes met, which go on for `SECONDS`."""
    arguments = command("tests.statestore.workers.chaos_worker", url, BUDGET, SECONDS)
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, "a process ended by itself; see what it wrote"
    found: dict[str, float] = json.loads(done.stdout)
    return found


def settle(stage: Stage) -> None:
    """One put more and a sweep: then what is there is sound and right, within the budget, summed
    rightly, and nothing else.
    """
    with open_store(stage.url) as store:
        put(store, numbers(BUDGET), BUDGET)
        assert store.flush(WAIT_S)
        sweep_until_sound(store, stage.place)
        assert [entry.key for entry in store.list() if not right(store, entry)] == []
        check_totals(store, stage.place.rows())
    assert stage.whole()


def right(store: StateStore, entry: Entry) -> bool:
    """Whether a lookup gives what `entry` stands for; nothing where it is barred."""
    found = store.find(OURS[entry.namespace], [entry.key], touch=False)
    if found is None:
        return entry.status is Status.QUARANTINED
    return is_right(found.state, entry.key, BUDGET)


def sweep_until_sound(store: StateStore, place: Any) -> None:
    """A server may still be at an upload whose sender is dead: that orphan comes late."""
    deadline = time.monotonic() + WAIT_S
    store.backend.sweep(time.time() + 10, grace_s=0)
    while place.blob_names() != named(place):
        assert time.monotonic() < deadline, place.blob_names() ^ named(place)
        store.backend.sweep(time.time() + 10, grace_s=0)


def check_totals(store: StateStore, rows: list[dict[str, Any]]) -> None:
    usage = store.usage()
    assert 0 < usage.blob_bytes <= BUDGET
    assert usage.entries == len(rows) == len(list(store.list()))
    assert usage.blob_bytes == sum(row["blob_bytes"] for row in rows)
    assert usage.pinned == sum(row["pinned"] for row in rows)
    assert usage.quarantined == sum(row["status"] == "quarantined" for row in rows)
    for name in OURS:
        mine = [row for row in rows if row["namespace"] in (name, name.encode())]
        assert store.usage(name).blob_bytes == sum(row["blob_bytes"] for row in mine)
        assert {namespace_of(int(row["n_tokens"]) - 1) for row in mine} <= {name}


def named(place: Any) -> set[str]:
    return {row["blob"] for row in place.rows()}
