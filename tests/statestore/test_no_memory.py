"""A process whose memory is limited: what has no room in it is a miss or a dropped put."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.checkout import ROOT

CHILD = """
import resource, sys
from pathlib import Path
from statestore import Identity, Role, open_store
from statestore.schema import DType, State, Tensor
from tests.places.backend_places import a_key, digest

ours, size = Identity(digest("model")), 64 << 20  # more than idles anywhere in this process
tensor = Tensor.of("a", DType.F32, (size // 4,), bytes(size))
state = State("plain", (tensor,))

def put(store, number):
    given = {"token_digest": digest("tokens"), "role": Role.PROMPT, "durable": True}
    return str(store.put(ours, a_key(number), state, **given))

def limit(room):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room if room else room_of_all, room_of_all))

room_of_all = resource.RLIM_INFINITY
url = sys.argv[1]
with open_store(url) as store:  # threads and libraries come before the limit
    assert put(store, 0) == "published"
    if "file:" in url:
        store.close()
        store = open_store(url)
        store.find(ours, [a_key(1)])
    limit(size // 4)
    found, dropped = store.find(ours, [a_key(0)]), put(store, 2)
    limit(0)
    print(found is not None, dropped)
    print(*(int(store.metrics.value("errors_total", operation=o)) for o in ("find", "put")))
    print(store.find(ours, [a_key(0)]) is not None, put(store, 2), store.usage().quarantined)
    store.close()
"""


def run(url: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize("codec", ["raw", "lossless"])
def test_what_cannot_be_read_for_want_of_memory_is_a_miss(tmp_path: Path, codec: str) -> None:
    looked, errors, after = run(f"{tmp_path.as_uri()}?codec={codec}")
    assert looked.split()[0] == "False"
    assert errors.split()[0] == "1"
    assert after.split()[0] == "True"
    assert after.split()[2] == "0"


def test_what_cannot_be_kept_for_want_of_memory_is_dropped() -> None:
    assert run("memory:") == ["True dropped", "0 1", "True published 0"]
