"""A process with a store of tiers: ``python -m tests.statestore.tiered_worker URL MODE``.

It puts ten states, says so, and then ends as MODE says: ``exit`` by itself, ``sigterm`` when it is
told to, ``handler`` when it is told to and with a handler of its own, ``fork`` in a child.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from statestore import StateStore, open_store
from tests.statestore.backend_places import a_key
from tests.statestore.test_store import OURS, put

STATES = 10


def main(url: str, mode: str) -> None:
    if mode == "handler":
        signal.signal(signal.SIGTERM, lambda *_: (print("mine", flush=True), os._exit(7)))
    store = open_store(url)
    for number in range(STATES):
        put(store, number)
    if mode == "fork":
        sys.exit(in_a_child(store))
    print("put", flush=True)
    if mode != "exit":
        threading.Event().wait(60)


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
