"""The file backend against a dict, over random sequences of calls."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from statestore.entry import Entry, EntryFilter, Status, Usage
from statestore.keys import StateKey
from tests.statestore.backend_places import CREATED_AT, FilePlace, a_blob, a_key, an_entry, publish

KEYS = [a_key(number) for number in range(6)]
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
                "labels": st.dictionaries(st.text(), st.text(), max_size=2),
                "status": st.sampled_from(Status),
            },
        ),
        stale=st.booleans(),
    )
    def update(self, key: StateKey, change: dict[str, Any], stale: bool) -> None:
        old = self.model.get(key)
        blob = f"{key}.0123456789abcdef" if stale else old and old.blob
        changed = self.backend.update(key, **change, blob=blob)
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
        )

    @invariant()
    def every_blob_is_named(self) -> None:
        assert self.place.blob_names() == {entry.blob for entry in self.model.values()}

    @invariant()
    def removals_are_remembered(self) -> None:
        known = self.backend.departed(KEYS)
        assert {key: gone.reason for key, gone in known.items()} == self.gone


TestBackendModel = BackendModel.TestCase
TestBackendModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
