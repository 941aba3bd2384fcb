"""A process with a store of tiers: ``python -m tests.statestore.workers.tiered_worker URL MODE``.

It puts ten states, says so, and then ends as MODE says: ``exit`` by itself, ``sigterm`` when it is
told to, ``busy`` when it is told to in the midst of a transaction on the catalog of its home (the
URL's last path), ``handler`` when it is told to and with a handler of its own, ``fork`` in a child.
With the URL ``publish`` or ``read`` its home hangs in that call, and a put or a promotion waits.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

from statestore import StateStore, open_store
from statestore.backends import ending
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.tiers.backend import Tier, Tiered
from statestore.backends.wrappers.faulty import Fault, Faulty, Hang, Operation
from tests.places.backend_places import CREATED_AT, a_key, an_entry, publish
from tests.places.states import OURS, put

STATES = 10


def main(url: str, mode: str) -> None:
    if mode == "handler":
        signal.signal(signal.SIGTERM, lambda *_: (print("mine", flush=True), os._exit(7)))
    if url in ("publish", "read"):
        store = with_a_home_that_hangs(url)
    else:
        store = open_store(url)
        if mode == "busy":
            in_a_transaction(store, Path(url.rpartition("file://")[2]))
            return
        for number in range(STATES):
            put(store, number)
    if mode == "fork":
        sys.exit(in_a_child(store))
    print("put", flush=True)
    if mode != "exit":
        threading.Event().wait(60)


def in_a_transaction(store: StateStore, home: Path) -> None:
    """The signal comes to a thread without which nothing can be written."""
    with closing(sqlite3.connect(home / "catalog.sqlite3", isolation_level=None)) as catalog:
        catalog.execute("BEGIN IMMEDIATE")
        for number in range(STATES):
            put(store, number)
        print("put", flush=True)
        while signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            time.sleep(0.01)
    threading.Event().wait(60)


def with_a_home_that_hangs(operation: Operation) -> StateStore:
    """The place hangs already; what waits for it is given up soon when the process ends."""
    hang = Hang()
    home = Faulty(MemoryBackend(), Fault((operation,), hang))
    publish(home.inner, an_entry(0))
    store = StateStore(Tiered([Tier("near", MemoryBackend()), Tier("home", home)]))
    ending.END_S = 0.5
    ending.flush_on_sigterm()
    if operation == "publish":
        put(store, 1)
    else:
        found = store.backend.longest([a_key(0)], CREATED_AT)
        assert found is not None
        store.touch(found)
    assert hang.met.wait(60)
    return store


def in_a_child(store: StateStore) -> int:
    """The parent's queue is not the child's; both can go on."""
    child = os.fork()
    if child == 0:
        put(store, 100)
        flushed = store.flush(30)
        os._exit(0 if flushed and store.get(OURS, a_key(100)) else 3)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if store.flush(30) else 4


if __name__ == "__main__":
    main(*sys.argv[1:])
