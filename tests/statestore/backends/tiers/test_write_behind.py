"""What is written behind the requests is written when a process ends: real processes, real signals;
and the queue by itself."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from statestore import open_store
from statestore.backends.tiers.write_behind import Bounds, Task, WriteBehind
from statestore.metrics import Metrics
from tests.checkout import ROOT
from tests.places.backend_places import a_key
from tests.statestore.workers.tiered_worker import STATES

WAIT_S = 60.0


def started(tmp_path: Path, mode: str) -> subprocess.Popen[str]:
    return worker(f"memory: {tmp_path.as_uri()}", mode)


def worker(url: str, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.statestore.workers.tiered_worker", url, mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def stored(tmp_path: Path) -> int:
    with open_store(tmp_path.as_uri()) as store:
        return store.usage().entries


def test_a_process_that_ends_flushes(tmp_path: Path) -> None:
    process = started(tmp_path, "exit")
    assert process.communicate(timeout=WAIT_S)[0] == "put\n"
    assert process.returncode == 0
    assert stored(tmp_path) == STATES


@pytest.mark.parametrize("mode", ["sigterm", "busy"])
def test_sigterm_flushes_and_then_ends_the_process(tmp_path: Path, mode: str) -> None:
    """Also where the main thread holds what the flush needs."""
    process = started(tmp_path, mode)
    assert process.stdout is not None
    assert process.stdout.readline() == "put\n"
    process.terminate()
    assert process.wait(WAIT_S) == -signal.SIGTERM
    process.stdout.close()
    assert stored(tmp_path) == STATES


@pytest.mark.parametrize("operation", ["publish", "read"])  # of a put and of a promotion
def test_a_home_that_hangs_keeps_no_process_from_ending(operation: str) -> None:
    ended = worker(operation, "exit"), worker(operation, "sigterm")
    assert ended[1].stdout is not None
    assert ended[1].stdout.readline() == "put\n"
    ended[1].terminate()
    for process in ended:
        process.communicate(timeout=WAIT_S)
    assert [process.returncode for process in ended] == [0, -signal.SIGTERM]


def test_a_handler_of_the_programs_own_stays(tmp_path: Path) -> None:
    process = started(tmp_path, "handler")
    assert process.stdout is not None
    assert process.stdout.readline() == "put\n"
    process.terminate()
    assert process.communicate(timeout=WAIT_S)[0] == "mine\n"
    assert process.returncode == 7


def test_a_forked_child_has_a_queue_of_its_own(tmp_path: Path) -> None:
    process = started(tmp_path, "fork")
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert stored(tmp_path) == STATES + 1


# The queue


def task(number: int, work: object = None, size: int = 10) -> Task:
    return Task("put", a_key(number), size, work or (lambda: None))  # type: ignore[arg-type]


def test_tasks_run_in_order_and_a_failure_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    queue = WriteBehind(metrics=metrics)
    done: list[int] = []

    def fail() -> None:
        raise RuntimeError("broken")

    queue.submit(task(0, lambda: done.append(0)))
    queue.submit(task(1, fail))
    queue.submit(task(2, lambda: done.append(2)))
    assert queue.flush(WAIT_S)
    assert done == [0, 2]
    assert "a put failed behind the requests" in caplog.text
    assert metrics.value("write_behind_total", kind="put", outcome="failed") == 1
    assert metrics.value("write_behind_total", kind="put", outcome="done") == 2
    queue.close()


def test_what_was_taken_back_is_not_done_and_not_waited_for() -> None:
    queue = WriteBehind()
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []
    queue.submit(task(0, lambda: (begun.set(), go_on.wait(WAIT_S))))
    assert begun.wait(WAIT_S)
    queue.submit(task(1, lambda: done.append(1)))
    queue.submit(task(2, lambda: done.append(2)))
    assert queue.waits("put", a_key(1))
    queue.cancel("put", a_key(1))
    assert not queue.waits("put", a_key(1))
    go_on.set()
    assert queue.flush(WAIT_S)
    assert done == [2]
    queue.close()


def test_taking_back_a_later_task_ends_no_wait_for_an_earlier_one() -> None:
    """Else a deletion would go ahead of the put that it has waited for."""
    queue = WriteBehind()
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []
    seen: list[list[int]] = []
    queue.submit(task(0, lambda: (begun.set(), go_on.wait(WAIT_S), done.append(0))))
    assert begun.wait(WAIT_S)
    waiting = threading.Thread(target=lambda: (queue.flush(WAIT_S), seen.append(list(done))))
    waiting.start()
    while not queue._changed._waiters:  # type: ignore[attr-defined]
        waiting.join(0.001)
    queue.submit(task(1))
    queue.cancel("put", a_key(1))
    waiting.join(0.1)  # it would be over by now
    go_on.set()
    waiting.join(WAIT_S)
    assert seen == [[0]]
    queue.close()


def test_a_task_larger_than_the_bound_goes_alone() -> None:
    queue = WriteBehind(Bounds(size_bytes=100, patience_s=0.0))
    assert queue.submit(task(0, size=1000))
    assert queue.flush(WAIT_S)
    queue.close()


def test_a_closed_queue_drops(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    queue = WriteBehind()
    queue.close()
    queue.close()
    assert not queue.submit(task(0))
    assert "the store was closed before it" in caplog.text
    assert queue.flush(WAIT_S)


def test_a_fork_in_mid_work_leaves_the_child_a_usable_queue() -> None:
    queue = WriteBehind()
    begun, go_on = threading.Event(), threading.Event()
    queue.submit(task(0, lambda: (begun.set(), go_on.wait(WAIT_S))))
    queue.submit(task(1))
    assert begun.wait(WAIT_S)
    child = os.fork()
    if child == 0:
        done: list[int] = []
        fine = queue.flush(1.0) and queue.submit(task(2, lambda: done.append(2)))
        os._exit(0 if fine and queue.flush(30.0) and done == [2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not queue.flush(0.0)
    go_on.set()
    assert queue.flush(WAIT_S)
    queue.close()
