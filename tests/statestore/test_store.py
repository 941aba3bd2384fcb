"""`StateStore` over a real directory that somebody damages: a miss, never an error nor a wrong
state; and what one caller cannot do to another.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statestore import Identity, PutOutcome, Role, StateStore, open_store
from statestore.backends.memory.backend import MemoryBackend
from statestore.backends.sql.file import open_file_backend
from statestore.backends.tiers.backend import Tier, Tiered
from statestore.backends.wrappers.faulty import Fault, Faulty, Hang
from statestore.codec import Limits
from statestore.entry import Entry, Status
from statestore.errors import InputError, SettingsError, StateStoreError, UnavailableError
from statestore.explain import Why, explain
from statestore.keys import KeyedBoundary, StateKey
from tests.places.backend_places import a_key, digest
from tests.places.states import OURS, a_state, put


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    """With states 0 and 1, in blobs of one size; a lookup asks for 0 first."""
    with open_store(tmp_path.as_uri() + "?codec=raw") as store:
        assert put(store, 0) is put(store, 1) is PutOutcome.PUBLISHED
        yield store


def found_by(store: StateStore, identity: Identity = OURS) -> StateKey | None:
    found = store.find(identity, [a_key(0), a_key(1)])
    return None if found is None else found.entry.key


def entry_of(store: StateStore, number: int) -> Entry:
    return next(entry for entry in store.list() if entry.key == a_key(number))


def file_of(store: StateStore, tmp_path: Path, number: int) -> Path:
    name = entry_of(store, number).blob
    return tmp_path / "blobs" / name[:2] / name


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "CorruptError": lambda path: (path.unlink(), path.mkdir()),
    "Missing": Path.unlink,
    "TruncatedError": lambda path: os.truncate(path, 100),
    "NotAContainerError": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "LayoutError": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("cause", DAMAGE)
def test_a_damaged_blob_is_barred_and_made_again(
    store: StateStore, tmp_path: Path, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[cause](file_of(store, tmp_path, 0))
    assert found_by(store) == a_key(1)
    barred = entry_of(store, 0)
    assert barred.status is Status.QUARANTINED
    assert barred.reason.startswith(cause)
    assert store.metrics.value("quarantined_total", cause=cause) == 1
    assert f"quarantined {a_key(0)}: {cause}" in caplog.text
    assert put(store, 0) is PutOutcome.PUBLISHED
    assert found_by(store) == a_key(0)


def test_the_blob_of_another_state_is_barred(store: StateStore, tmp_path: Path) -> None:
    file_of(store, tmp_path, 0).write_bytes(file_of(store, tmp_path, 1).read_bytes())
    assert found_by(store) == a_key(1)
    assert entry_of(store, 0).reason.startswith("ForeignError")


@pytest.mark.parametrize(
    "other", [Identity(digest("other model")), Identity(OURS.fingerprint, "other")]
)
def test_who_asks_as_another_finds_nothing_and_bars_nothing(
    store: StateStore, other: Identity
) -> None:
    assert found_by(store, other) is None
    assert store.usage().quarantined == 0
    assert found_by(store) == a_key(0)


DAMAGED_COLUMNS = {
    "role": "'unheard of'",
    "status": "'unheard of'",
    "labels": "'{'",
    "n_tokens": "'many'",
    "blob": "'../../etc/passwd'",
    "blob_bytes": "'many'",
    "expires_at": "'never'",
}


@pytest.mark.parametrize("column", DAMAGED_COLUMNS)
def test_a_damaged_row_is_stepped_over_named_and_replaced(
    store: StateStore, tmp_path: Path, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite3")) as catalog:
        where = f"x'{a_key(0).hex}'"
        value = DAMAGED_COLUMNS[column]
        catalog.execute(f"UPDATE entries SET {column} = {value} WHERE digest = {where}")
        catalog.commit()
    assert found_by(store) == a_key(1)
    assert [entry.key for entry in store.list()] == [a_key(1)]
    assert f"row of digest {a_key(0).hex} is damaged, and passed over" in caplog.text
    store.sweep(0.0)
    assert put(store, 0) is PutOutcome.PUBLISHED
    assert found_by(store) == a_key(0)


def test_a_catalog_of_any_damage_is_a_named_error(tmp_path: Path) -> None:
    """What SQLite says of a damaged table may itself be no text."""
    with open_store(tmp_path.as_uri()) as store:
        put(store, 0)
    path = tmp_path / "catalog.sqlite3"
    sound = path.read_bytes()
    at = sound.index(b"CREATE TABLE entries") + len("CREATE TABLE ")
    path.write_bytes(sound[:at] + b"\xff" + sound[at + 1 :])
    with pytest.raises(UnavailableError, match=str(path)):
        open_store(tmp_path.as_uri())
    source = np.random.default_rng(0)
    for _ in range(30):
        flipped = bytearray(sound)
        for position in source.integers(100, len(sound), 60):
            flipped[position] = source.integers(256)
        path.write_bytes(flipped)
        use_damaged(tmp_path)


def use_damaged(directory: Path) -> None:
    try:
        store = open_store(directory.as_uri())
    except StateStoreError:
        return
    with store:
        found = store.find(OURS, [a_key(0)])
        if found is not None:
            assert found.state["t"].data == a_state(0)["t"].data
        put(store, 1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": "a\udcff"}, "model: .* is not text"),
        ({"model": "a\x00"}, "model"),
        ({"cost_s": float("nan")}, "cost_s"),
        ({"ttl_s": float("nan")}, "expires_at"),
        ({"token_digest": b"short"}, "token digest"),
    ],
)
def test_a_put_without_sense_is_the_callers_error(
    store: StateStore, tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        put(store, 2, **fields)
    assert store.usage().entries == len(list((tmp_path / "blobs").glob("*/*"))) == 2


def test_a_name_that_is_too_long_for_the_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can be no directory: File name too long"):
        open_store((tmp_path / ("x" * 300)).as_uri())


def test_a_directory_that_no_file_system_names_is_refused() -> None:
    with pytest.raises(SettingsError, match="can be no directory"):
        open_file_backend(Path("/tmp/a\0b"))


def test_a_put_says_what_lay_below_it(store: StateStore) -> None:
    assert put(store, 2, ancestor_tokens=1, durable=True) is PutOutcome.PUBLISHED
    assert entry_of(store, 2).ancestor_tokens == 1
    assert store.flush(0.0)
    assert store.usage("default").entries == 3
    assert store.usage("nobody").entries == 0


def test_a_state_that_no_load_would_take_is_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = open_file_backend(tmp_path)
    with StateStore(backend, limits=Limits(decoded_bytes=255)) as store:
        assert put(store, 0) is PutOutcome.DROPPED
        assert store.usage().entries == 0
        assert "decoded size in bytes is 256, the limit here is 255" in caplog.text
        assert store.metrics.value("puts_total", outcome="dropped") == 1


def test_a_store_that_only_reads_is_stepped_down(
    store: StateStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged state that cannot be barred must not be met again and again."""
    file_of(store, tmp_path, 0).unlink()
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite3")) as catalog:
        catalog.execute(
            "CREATE TRIGGER no BEFORE UPDATE ON entries BEGIN SELECT RAISE(FAIL, 'no'); END"
        )
    found = store.find(OURS, [a_key(0), a_key(1)], touch=False)
    assert found is not None
    assert found.entry.key == a_key(1)
    assert store.metrics.value("errors_total", operation="quarantine") == 1


def test_explain_names_a_whole_prompt_without_its_output(store: StateStore) -> None:
    """A lookup of that very prompt steps over it; one that goes on from there does not."""
    boundaries = [
        KeyedBoundary(number + 1, a_key(number), Role.SEGMENT, True, 0, digest("tokens"))
        for number in (0, 1)
    ]
    verdicts = explain(store, OURS, boundaries)
    assert [verdict.why for verdict in verdicts] == [Why.FOUND, Why.NO_OUTPUT]
    assert not verdicts[-1].found


@pytest.mark.parametrize("hangs", [True, False])
def test_a_flush_has_one_time_for_all(hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the home leaves nothing to the tally of lookups."""
    hang = Hang()
    faults = [Fault(("publish",), hang)] if hangs else []
    home = Faulty(MemoryBackend(), *faults)
    with StateStore(Tiered([Tier("near", MemoryBackend()), Tier("home", home)])) as store:
        given: list[float | None] = []
        monkeypatch.setattr(store._tally, "flush", given.append)
        put(store, 0)
        assert store.flush(0.2 if hangs else 60.0) is not hangs
        (left_s,) = given
        assert left_s is not None
        assert (left_s == 0.0) is hangs
        hang.released.set()
