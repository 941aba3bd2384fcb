"""Many processes and threads over one Redis store, and processes that die in the middle."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from statestore.errors import ClosedError
from tests.places.redis_places import RedisPlace
from tests.places.redis_servers import running, running_cluster, wait_until
from tests.places.soundness import check_entries, named
from tests.statestore.workers.backend_worker import step
from tests.statestore.workers.redis_worker import run_worker

#: Processes killed, instead of a few: 1000 take some minutes.
KILLS = int(os.environ.get("TEST_KILLS", "0"))


@pytest.fixture(scope="module", params=["one server", "cluster"])
def anywhere(request: pytest.FixtureRequest) -> Iterator[tuple[str, list]]:
    if request.param == "one server":
        with running() as server:
            yield server.url, [server]
    else:
        with running_cluster() as nodes:
            hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
            yield f"redis+cluster://{hosts}", nodes


@pytest.fixture
def place(anywhere: tuple[str, list], request: pytest.FixtureRequest) -> RedisPlace:
    url, nodes = anywhere
    return RedisPlace(url, nodes, request.node.originalname)


def check_store(place: RedisPlace) -> None:
    """All that the store says is so, and nothing stays that no entry names."""
    check_entries(place)
    blobs = named(place)
    for blob, keys in place.parts().items():
        for key in keys:
            lives_s = place.at(key, lambda node, key=key: node.ttl(key))
            assert (lives_s == -1) is (blob in blobs), key


def test_eight_processes_at_once(place: RedisPlace) -> None:
    done = run_worker("mix", place.url, 1, 8)
    assert done.returncode == 0, done.stderr
    check_store(place)


def test_sixteen_threads_over_one_backend(place: RedisPlace) -> None:
    backend = place.open()

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(40):
            step(backend, dice)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    backend.close()
    check_store(place)


def run_and_kill(verb: str, place: RedisPlace, seed: int, count: int) -> None:
    """Run it, until the servers have done what the dead had still sent."""
    before = connections(place)
    done = run_worker(verb, place.url, seed, count)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: connections(place) <= before, "the last of the killed to be heard")


def connections(place: RedisPlace) -> int:
    count = 0
    for node in place.nodes:
        with node.client() as client:
            count += len(client.client_list())
    return count


def test_sigkill_at_any_moment_leaves_only_keys_that_expire(place: RedisPlace) -> None:
    left = seed = 0
    while seed <= KILLS // 8 or (left == 0 and seed < 10):  # else the kills never met a write
        seed += 1
        run_and_kill("kill", place, seed, 8)
        check_store(place)
        left += len(place.blob_names()) - len(place.rows())
        backend = place.open()
        backend.sweep(0.0, grace_s=0)
        backend.close()
        wait_until(lambda: len(place.parts()) == len(place.rows()), "what was evicted to expire")
        check_store(place)
    assert left > 0


def test_calls_that_run_while_it_closes_end_well(place: RedisPlace) -> None:
    backend = place.open()
    outcomes: list[ClosedError] = []
    begun = threading.Barrier(5)

    def work(seed: int) -> None:
        dice = random.Random(seed)
        step(backend, dice)
        begun.wait()
        try:
            while True:
                step(backend, dice)
        except ClosedError as error:
            outcomes.append(error)

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(work, seed) for seed in range(4)]
        begun.wait()
        backend.close()
        for task in running:
            task.result()
    assert len(outcomes) == 4
    check_store(place)
