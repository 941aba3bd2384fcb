"""Backends against a dict, over random sequences of calls; disasters among them: blobs damaged from
outside, and processes killed in the middle of a put.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from statestore.backends.base import Backend
from statestore.entry import Change, Entry, EntryFilter, Status, Usage
from statestore.keys import StateKey
from tests.places.backend_places import (
    CREATED_AT,
    FilePlace,
    MemoryPlace,
    TieredPlace,
    a_blob,
    a_key,
    an_entry,
    publish,
)
from tests.places.redis_servers import wait_until

KEYS = [a_key(number) for number in range(6)]
BARRED = Change(status=Status.QUARANTINED)
LABELS = st.text(max_size=64)  # 4 bytes each at most: what the name of a label may have
names = itertools.count()
numbers = st.integers(0, len(KEYS) - 1)
times = st.floats(CREATED_AT, CREATED_AT + 100)


class BackendModel(RuleBasedStateMachine):
    """`model` is what should be stored; the clock stands where a rule last set it."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="statestore-model-"))
        self.place = FilePlace(self.root / "store")
        self.backend = self.place.open()
        self.model: dict[StateKey, Entry] = {}
        self.gone: dict[StateKey, str] = {}
        self.now = CREATED_AT

    def teardown(self) -> None:
        self.backend.close()
        shutil.rmtree(self.root)

    def usable(self, entry: Entry | None) -> bool:
        if entry is None or entry.status is Status.QUARANTINED:
            return False
        return entry.expires_at is None or entry.expires_at > self.now

    @initialize(count=st.integers(0, len(KEYS)))
    def begin_with(self, count: int) -> None:
        for number in range(count):
            entry = an_entry(number, created_at=self.now, used_at=self.now)
            assert publish(self.backend, entry)
            self.model[entry.key] = entry

    @rule(at=times)
    def set_clock(self, at: float) -> None:
        self.now = at

    @rule(number=numbers, size=st.integers(0, 5000), ttl_s=st.none() | st.floats(0, 50))
    def put(self, number: int, size: int, ttl_s: float | None) -> None:
        expires_at = None if ttl_s is None else self.now + ttl_s
        entry = an_entry(
            number, blob_bytes=size, created_at=self.now, used_at=self.now, expires_at=expires_at
        )
        wins = not self.usable(self.model.get(entry.key))
        assert publish(self.backend, entry) is wins
        if wins:
            self.model[entry.key] = entry
            self.gone.pop(entry.key, None)

    @rule(key=st.sampled_from(KEYS), reason=st.text(st.characters(codec="ascii", min_codepoint=32)))
    def remove(self, key: StateKey, reason: str) -> None:
        assert self.backend.delete(key, reason) is (key in self.model)
        if self.model.pop(key, None) is not None:
            self.gone[key] = reason

    @rule(key=st.sampled_from(KEYS), score=st.floats(allow_nan=False))
    def touch(self, key: StateKey, score: float) -> None:
        self.backend.touch(an_entry(0, key=key), self.now, score)
        if (old := self.model.get(key)) is not None:
            self.model[key] = replace(old, hits=old.hits + 1, used_at=self.now, score=score)

    @rule(
        key=st.sampled_from(KEYS),
        change=st.fixed_dictionaries(
            {},
            optional={
                "pinned": st.booleans(),
                "expires_at": times,
                "labels": st.dictionaries(LABELS, LABELS, max_size=2),
                "status": st.sampled_from(Status),
            },
        ),
        stale=st.booleans(),
    )
    def update(self, key: StateKey, change: dict[str, Any], stale: bool) -> None:
        old = self.model.get(key)
        blob = f"{key}.0123456789abcdef" if stale else old and old.blob
        changed = self.backend.update(key, Change(**change), blob=blob)
        assert changed is (old is not None and not stale)
        if changed and old is not None:
            self.model[key] = replace(old, **change)

    @rule()
    def sweep(self) -> None:
        over = [key for key, entry in self.model.items() if (entry.expires_at or 1e99) <= self.now]
        assert self.backend.sweep(self.now, grace_s=1e12).expired == len(over)
        for key in over:
            del self.model[key]
            self.gone[key] = "expired"

    @rule()
    def reopen(self) -> None:
        self.backend.close()
        self.backend = self.place.open()

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=12))
    def look_up(self, keys: list[StateKey]) -> None:
        wanted = [self.model[key] for key in keys if self.usable(self.model.get(key))]
        found = self.backend.longest(keys, self.now)
        assert found == (wanted[0] if wanted else None)
        if found is not None:
            assert self.backend.read(found) == a_blob(found.key, found.blob_bytes)

    @invariant()
    def catalog_equals_model(self) -> None:
        assert {entry.key: entry for entry in self.backend.entries(EntryFilter())} == self.model

    @invariant()
    def totals_are_sums(self) -> None:
        rows = self.place.rows()
        assert self.backend.usage() == Usage(
            len(rows),
            sum(row["blob_bytes"] for row in rows),
            sum(row["state_bytes"] for row in rows),
            sum(row["status"] == "quarantined" for row in rows),
            sum(row["pinned"] for row in rows),
            pinned_bytes=sum(row["blob_bytes"] for row in rows if row["pinned"]),
        )

    @invariant()
    def every_blob_is_named(self) -> None:
        assert self.place.blob_names() == {entry.blob for entry in self.model.values()}

    @invariant()
    def removals_are_remembered(self) -> None:
        known = self.backend.departed(KEYS)
        assert {key: gone.reason for key, gone in known.items()} == self.gone


class DisasterModel(BackendModel):
    """As `BackendModel`, while blobs are damaged and processes killed."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: set[str] = set()  # blobs

    @rule(which=numbers, cut=st.booleans(), met=st.booleans())
    def damage(self, which: int, cut: bool, met: bool) -> None:
        """Behind the backend's back, as a disk does; `met` by the next lookup, or later."""
        if (
            not self.model
        ):  # no precondition: what a killed process left is no function of the draws
            return
        key, entry = list(self.model.items())[which % len(self.model)]
        if entry.blob_bytes:
            sound = a_blob(key, entry.blob_bytes)
            bad = sound[: entry.blob_bytes // 2] if cut else bytes([sound[0] ^ 1]) + sound[1:]
            self.place.write_blob(entry.blob, bad, age_s=0)
            self.damaged.add(entry.blob)
            if met:
                self.find([key, *KEYS])

    @rule(number=numbers, delay_s=st.sampled_from([0.0, 0.001, 0.003, 0.01, 0.1]))
    def another_process_is_killed(self, number: int, delay_s: float) -> None:
        """In the middle of a put: there is all of it, or nothing but what a sweep takes."""
        entry = an_entry(number, created_at=self.now, used_at=self.now)
        replaceable = not self.usable(self.model.get(entry.key))
        before = self.connections()
        killed(self.place.open, lambda backend: publish(backend, entry), delay_s)
        wait_until(lambda: self.connections() <= before, "the server to notice the death")
        stored = {each.key: each for each in self.backend.entries(EntryFilter())}.get(entry.key)
        if stored is not None and stored.blob == entry.blob:
            assert replaceable
            self.model[entry.key] = entry
            self.gone.pop(entry.key, None)
        self.clean()

    def connections(self) -> int:
        """To the place's server, which hears a dead process's last words before it hangs up."""
        return 0

    def clean(self) -> None:
        """Take away orphans, however young, and with them what has expired."""
        over = [key for key, entry in self.model.items() if (entry.expires_at or 1e99) <= self.now]
        assert self.backend.sweep(self.now, grace_s=-1e12).expired == len(over)
        for key in over:
            del self.model[key]
            self.gone[key] = "expired"

    @rule(keys=st.permutations(KEYS))
    def look_up(self, keys: list[StateKey]) -> None:
        self.find(keys)

    def find(self, keys: list[StateKey]) -> None:
        """As the store does it: what is damaged is barred, and the same keys are asked again."""
        while (found := self.backend.longest(keys, self.now)) is not None:
            wanted = next(key for key in keys if self.usable(self.model.get(key)))
            self.check_found(found, wanted, keys)
            blob = self.backend.read(found)
            if blob == a_blob(found.key, found.blob_bytes):
                return
            assert found.blob in self.damaged
            assert self.backend.update(found.key, BARRED, blob=found.blob)
            self.model[found.key] = replace(found, status=Status.QUARANTINED)
        assert not any(self.usable(self.model.get(key)) for key in keys)

    def check_found(self, found: Entry, wanted: StateKey, keys: list[StateKey]) -> None:
        assert found == self.model[wanted]


def killed(opens: Callable[[], Backend], work: Callable[[Backend], Any], delay_s: float) -> None:
    """Run `work` in a child process, which is killed `delay_s` after it began."""
    ready, begins = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks among threads
        child = os.fork()
    if child == 0:
        try:
            backend = opens()
            os.write(begins, b"x")
            work(backend)
            signal.pause()
        finally:
            os._exit(1)
    os.close(begins)
    assert os.read(ready, 1) == b"x", "the child could not open the store"
    os.close(ready)
    time.sleep(delay_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


class MemoryModel(DisasterModel):
    """What lies in memory goes with its process."""

    another_process_is_killed = None

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def teardown(self) -> None:
        super().teardown()
        self.place.held.close()

    def begin(self) -> None:
        self.backend.close()
        self.place = MemoryPlace(f"model-{next(names)}")
        self.backend = self.place.open()

    @rule()
    def the_process_ends(self) -> None:
        self.place.held.close()
        self.begin()
        self.model.clear()
        self.gone.clear()
        self.damaged.clear()


class TieredModel(DisasterModel):
    """Memory ahead of a directory. The model is what the home holds; near copies are met as well,
    so that a lookup finds this much or more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = FilePlace(self.root / "home")
        self.reopen()

    @rule()
    def reopen(self) -> None:
        """With nothing in memory."""
        self.backend.close()
        url = (self.root / "home").as_uri()
        self.place = TieredPlace(f"model-{next(names)}", self.home, url)
        self.backend = self.place.open()

    @rule(number=numbers, size=st.integers(0, 5000), durable=st.booleans())
    def put(self, number: int, size: int, durable: bool) -> None:
        entry = an_entry(number, blob_bytes=size, created_at=self.now, used_at=self.now)
        wins = not self.usable(self.model.get(entry.key))
        blob = [a_blob(entry.key, size)]
        published = self.backend.publish(entry, blob, durable=durable)
        assert published is wins or not durable
        if wins:
            self.model[entry.key] = entry
            self.gone.pop(entry.key, None)

    @rule(
        key=st.sampled_from(KEYS), pinned=st.booleans(), status=st.none() | st.sampled_from(Status)
    )
    def update(self, key: StateKey, pinned: bool, status: Status | None) -> None:
        old = self.model.get(key)
        near = self.backend.update(key, Change(pinned=pinned, status=status))
        assert near or old is None
        if old is not None:
            self.model[key] = replace(old, pinned=pinned, status=status or old.status)

    @rule(keys=st.permutations(KEYS))
    def use(self, keys: list[StateKey]) -> None:
        """A hit, which is copied nearer; the home's notes follow."""
        found = self.backend.longest(keys, self.now)
        if found is not None:
            self.backend.read(found)
            self.backend.touch(found, self.now, 5.0)
            if (old := self.model.get(found.key)) is not None:
                self.model[found.key] = replace(old, hits=old.hits + 1, used_at=self.now, score=5.0)

    def find(self, keys: list[StateKey]) -> None:
        best = next((i for i, key in enumerate(keys) if self.usable(self.model.get(key))), None)
        while (found := self.backend.longest(keys, self.now)) is not None:
            assert best is None or keys.index(found.key) <= best
            if self.backend.read(found) == a_blob(found.key, found.blob_bytes):
                return
            assert self.backend.update(found.key, BARRED, blob=found.blob)
            if found.tier == "file":
                assert found.blob in self.damaged
                old = self.model[found.key]
                self.model[found.key] = replace(old, status=Status.QUARANTINED)
            best = next((i for i, key in enumerate(keys) if self.usable(self.model.get(key))), None)
        assert best is None


STEPS = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestFileModel = DisasterModel.TestCase
TestFileModel.settings = settings(STEPS, max_examples=15)
TestMemoryModel = MemoryModel.TestCase
TestMemoryModel.settings = STEPS
TestTieredModel = TieredModel.TestCase
TestTieredModel.settings = settings(STEPS, max_examples=15)
