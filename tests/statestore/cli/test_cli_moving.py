"""States on their way: export, import and copy, stopped, damaged, encrypted, between all places."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from statestore import Identity, StateStore, open_store
from statestore.cli import main
from statestore.entry import Change, Entry, Role, Status
from statestore.keys import Namespace, StateKey, named_key
from tests.checkout import GOLDEN
from tests.golden.make_golden_archive import CODECS, golden_entry
from tests.places.backend_places import digest
from tests.places.postgres_servers import shared_server
from tests.places.redis_servers import running
from tests.places.states import IDENTITY, SCHEMA, make_state
from tests.statestore.codec.codec_samples import small_state
from tests.statestore.workers.commanded import run, run_json

COUNT = 6
LARGE = 200


def put(store: StateStore, number: int, **given: object) -> StateKey:
    key = StateKey(digest(f"state {number}"), 10 + number)
    state = make_state(number)
    tokens = digest(f"tokens {number}")
    options = {"role": Role.SEGMENT, "cost_s": 0.5 * number, "model": "m.pth", **given}
    store.put(IDENTITY, key, state, token_digest=tokens, **options)  # type: ignore[arg-type]
    return key


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States with everything that an entry knows."""
    root = tmp_path_factory.mktemp("moving") / "store"
    with open_store(str(root)) as store:
        put(store, 0, pinned=True)
        put(store, 1, labels={"title": "ä name", "empty": ""}, ancestor_tokens=5)
        put(store, 2, ttl_s=10_000.0)
        hit = put(store, 3)
        for key in [hit] * 4:
            assert store.get(IDENTITY, key) is not None
        put(store, 4, role=Role.PROMPT)
        put(store, 5, model="other.pth")
    return root


@pytest.fixture
def origin(made: Path, tmp_path: Path) -> Path:
    """A store of one's own, as made."""
    return shutil.copytree(made, tmp_path / "origin")


def entries(place: Path | str) -> dict[StateKey, Entry]:
    """What is stored, but for what belongs to one store."""
    with open_store(str(place)) as store:
        return {e.key: replace(e, blob="", blob_bytes=0, tier="") for e in store.list()}


def here(*arguments: object) -> Result:
    """A command in this process, where what is looked at is no matter of processes."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def damage(root: Path, key: StateKey) -> None:
    (blob,) = root.glob(f"blobs/*/{key}.*")
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.write_bytes(content)


def test_what_is_exported_arrives_with_all_that_is_known_of_it(
    origin: Path, tmp_path: Path
) -> None:
    file = tmp_path / "states.rwkvar"
    said = run_json("--store", str(origin), "export", str(file))
    assert (said["copied"], said["damaged"], said["dry_run"]) == (COUNT, 0, False)
    assert file.stat().st_mode & 0o777 == 0o600
    assert not file.with_name(f"{file.name}.part").exists()
    imported = run_json("--store", str(tmp_path / "new"), "import", str(file))
    assert (imported["copied"], imported["present"]) == (COUNT, 0)
    assert imported["about"]["place"] == origin.as_uri()
    assert entries(tmp_path / "new") == entries(origin)
    again = run_json("--store", str(tmp_path / "new"), "import", str(file))
    assert (again["copied"], again["present"]) == (0, COUNT)
    with open_store(str(tmp_path / "new")) as store:
        for entry in list(store.list()):
            found = store.get(Identity(entry.fingerprint), entry.key)
            assert found is not None
            assert found.state.tensors == make_state(entry.key.n_tokens - 10).tensors


def test_through_a_pipe(origin: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "statestore", "--store"]
    export = subprocess.Popen(
        [*command, str(origin), "export", "-", "--model", "m.pth"], stdout=subprocess.PIPE
    )
    done = subprocess.run(
        [*command, str(tmp_path / "new"), "import", "-"],
        stdin=export.stdout,
        capture_output=True,
        text=True,
        check=True,
    )
    assert export.stdout is not None
    export.stdout.close()
    assert export.wait() == 0
    assert done.stdout.startswith("5 imported (")
    assert len(entries(tmp_path / "new")) == 5


def test_a_dry_run_makes_nothing(origin: Path, tmp_path: Path) -> None:
    file, new = tmp_path / "x", tmp_path / "new"
    assert here("--store", origin, "export", file, "--dry-run").exit_code == 0
    assert not list(tmp_path.glob("x*"))
    assert here("--store", origin, "export", file).exit_code == 0
    foretold = here("--store", new, "import", file, "--dry-run")
    assert foretold.stdout.startswith(f"{COUNT} would be imported (")
    copied = here("copy", origin, new, "--pinned", "--dry-run")
    assert copied.stdout.startswith("1 would be copied (")
    assert not new.exists()


def test_an_export_replaces_no_file_and_goes_on_with_no_other_export(
    origin: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x"
    file.write_text("mine")
    refused = here("--store", origin, "export", file)
    assert (refused.exit_code, "is there already" in refused.stderr) == (2, True)
    file.unlink()
    part = tmp_path / "x.part"
    part.write_text("something else")
    refused = here("--store", origin, "export", file)
    assert (refused.exit_code, "remove it" in refused.stderr) == (2, True)
    assert part.read_text() == "something else"
    missing = here("--store", origin, "export", tmp_path / "no directory" / "x")
    assert (missing.exit_code, "no directory" in missing.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "is a directory"), (".", "is a directory"), ("nowhere/x", "nowhere is no directory")],
)
def test_a_name_that_no_file_can_have_is_a_mistake(origin: Path, name: str, words: str) -> None:
    done = here("--store", origin, "export", name)
    assert (done.exit_code, words in done.stderr) == (2, True), done.output


def test_an_export_that_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    dead = "redis://127.0.0.1:1/0?find_ms=0"
    assert here("--store", dead, "export", tmp_path / "x").exit_code == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bring", [("copy",), ("--store", "memory:", "import")])
def test_what_would_end_with_the_command_is_no_target(
    origin: Path, tmp_path: Path, bring: tuple[str, ...]
) -> None:
    file = tmp_path / "x"
    assert here("--store", origin, "export", file).exit_code == 0
    done = here(*bring, *([origin, "memory:"] if bring == ("copy",) else [file]))
    assert (done.exit_code, "a place that lasts" in done.stderr) == (2, True), done.output


def test_damage_stays_behind_and_is_told(origin: Path, tmp_path: Path) -> None:
    damaged, *others = entries(origin)
    damage(origin, damaged)
    file = tmp_path / "x"
    done = here("--store", origin, "export", file, "--json")
    assert done.exit_code == 3
    said = json.loads(done.stdout)
    assert (said["copied"], said["damaged"]) == (COUNT - 1, 1)
    assert said["unsound"][0]["key"] == str(damaged)
    done = here("copy", origin, tmp_path / "new", "--json")
    assert done.exit_code == 3
    assert set(entries(tmp_path / "new")) == set(others)


def test_what_no_archive_holds_stays_behind_alone(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statestore.backends.fields.LABELS", 2000)  # as before there were limits
    with open_store(str(origin)) as store:
        put(store, 50, labels={str(number): "" for number in range(1025)})
    done = here("--store", origin, "export", tmp_path / "x")
    assert (done.exit_code, "1025 labels" in done.stderr) == (3, True)
    imported = here("--store", tmp_path / "new", "import", tmp_path / "x")
    assert (imported.exit_code, len(entries(tmp_path / "new"))) == (0, COUNT)


def test_labels_from_before_there_were_limits(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are shown, exported and kept; a place that has limits takes the others."""
    with monkeypatch.context() as before, open_store(str(origin)) as store:
        before.setattr("statestore.backends.fields.LABEL_VALUE_BYTES", 9999)
        long = put(store, 50, labels={"title": "t" * 5000})
    assert "t" * 5000 in here("--store", origin, "show", long.hex).stdout
    assert here("--store", origin, "pin", long.hex).exit_code == 0
    assert here("--store", origin, "export", tmp_path / "x").exit_code == 0
    imported = here("--store", tmp_path / "a", "import", tmp_path / "x")
    copied = here("copy", origin, tmp_path / "b")
    for done in (imported, copied):
        assert done.exit_code == 3
        told = done.stdout + done.stderr
        assert "the value of label 'title' has 5,000 bytes, 4,096 at most" in told
    assert len(entries(tmp_path / "a")) == len(entries(tmp_path / "b")) == COUNT


def test_a_name_that_no_label_holds(origin: Path, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    key = next(iter(entries(origin))).hex
    assert here("--store", origin, "export", file, "--key", key, "--layout", "rwkv").exit_code == 0
    done = here(
        "--store", origin, "import", file, "--layout", "rwkv", "--name", "n" * 5000, "--like", key
    )
    assert done.exit_code == 2
    assert "the value of label 'name' has 5,000 bytes, 4,096 at most: shorten it" in done.stderr


def test_quarantined_and_expired_states_stay_behind(origin: Path, tmp_path: Path) -> None:
    barred, expired, *others = entries(origin)
    with open_store(str(origin)) as store:
        store.backend.update(barred, Change(status=Status.QUARANTINED, reason="x"))
        store.update(expired, expires_at=time.time() - 1)
    assert here("copy", origin, tmp_path / "new").exit_code == 0
    assert set(entries(tmp_path / "new")) == set(others)


def test_a_place_with_a_budget_and_a_time_to_live_goes_by_its_own_rules(
    origin: Path, tmp_path: Path
) -> None:
    """What was used last stays; a time to live begins where the state arrives."""
    long_ago = time.time() - 30 * 86_400
    with closing(sqlite3.connect(origin / "catalog.sqlite3")) as catalog, catalog:
        catalog.execute(
            "UPDATE entries SET created_at = ?, used_at = ? + n_tokens, pinned = 0",
            (long_ago, long_ago),
        )
    last = sorted(entries(origin).values(), key=lambda entry: entry.used_at)[-3:]
    new = f"{tmp_path / 'new'}?ttl=7d&budget=110KiB&policy=lru"  # of states of 28 KiB
    done = here("copy", origin, new, "--threads", "1")
    assert (done.exit_code, "3 copied, 3 left for want of room" in done.stdout) == (4, True)
    found = entries(new)
    assert {entry.key for entry in last} == set(found)
    week = time.time() + 7 * 86_400
    lasting = [entry.expires_at for entry in found.values() if entry.key.n_tokens != 12]
    assert all(at is not None and abs(at - week) < 600 for at in lasting)
    assert here("copy", origin, f"{tmp_path / 'all'}?ttl=7d").exit_code == 0
    again = json.loads(here("copy", origin, f"{tmp_path / 'all'}?ttl=7d", "--json").stdout)
    assert again["present"] == COUNT


def test_what_has_expired_makes_way_for_a_copy(origin: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert here("copy", origin, new).exit_code == 0
    key = next(iter(entries(origin)))
    with open_store(str(new)) as store:
        store.update(key, expires_at=time.time() - 1)
    said = json.loads(here("copy", origin, new, "--json").stdout)
    assert (said["copied"], said["present"]) == (1, COUNT - 1)
    assert entries(new) == entries(origin)


@pytest.mark.parametrize("cut", [30, 1000, -40])
def test_the_sound_part_of_a_file_is_imported(origin: Path, tmp_path: Path, cut: int) -> None:
    file = tmp_path / "x"
    assert here("--store", origin, "export", file).exit_code == 0
    content = file.read_bytes()
    file.write_bytes(content[:cut])
    done = run("--store", str(tmp_path / "new"), "import", str(file))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    if cut == 30:
        assert "the archive ends after 30 bytes" in done.stderr
        assert not (tmp_path / "new").exists()
        return
    count = {1000: 0, -40: COUNT}[cut]
    assert f"{file}: TruncatedError: the archive is sound" in done.stderr
    assert f"{count} of its states" in done.stderr
    assert done.stdout.startswith(f"{count} imported")
    assert len(entries(tmp_path / "new")) == count


def test_a_damaged_record_is_left_out(origin: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    assert here("--store", origin, "export", file).exit_code == 0
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = here("--store", tmp_path / "new", "import", file, "--json")
    assert done.exit_code == 3
    said = json.loads(done.stdout)
    assert (said["copied"], said["damaged"], said["broken"]) == (COUNT - 1, 1, "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\3\4", "no archive of states"),
        (b"\x89RWKVAR\n\2\0\0\0" + bytes(40), "format version 2"),
        (b"", "x: no archive of states: it is empty"),
    ],
)
def test_what_is_no_archive_of_this_release_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "x").write_bytes(content)
    done = here("--store", tmp_path / "new", "import", tmp_path / "x")
    assert (done.exit_code, words in done.stderr) == (3, True)
    assert not (tmp_path / "new").exists()
    assert here("--store", tmp_path / "new", "import", tmp_path / "none").exit_code == 2


def test_an_archive_of_an_older_release_is_imported_and_used(tmp_path: Path) -> None:
    new = tmp_path / "new"
    done = here("--store", new, "import", GOLDEN / "archive-v1.rwkvar")
    assert done.stdout.startswith("2 imported"), done.output
    expected = [golden_entry(number) for number in range(len(CODECS))]
    assert entries(new) == {entry.key: entry for entry in expected}
    with open_store(str(new)) as store:
        for entry in expected:
            found = store.get(Identity(entry.fingerprint), entry.key)
            assert found is not None
            assert found.state == small_state()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many states that a command can be killed among them."""
    root = tmp_path_factory.mktemp("large") / "store"
    with open_store(str(root)) as store, ThreadPoolExecutor(8) as threads:
        list(threads.map(partial(put, store), range(LARGE)))
    return root


def kill_within(arguments: list[str], met: Callable[[], bool], anew: Callable[[], None]) -> None:
    """Kill the command as soon as `met`; where it was quicker, begin `anew`."""
    for _ in range(20):
        anew()
        process = subprocess.Popen([sys.executable, "-m", "statestore", *arguments])
        while not met() and process.poll() is None:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            return
    raise AssertionError("it always ended before it could be killed")


def test_an_export_that_was_killed_goes_on(large: Path, tmp_path: Path) -> None:
    file, part = tmp_path / "x", tmp_path / "x.part"
    export = ["--store", str(large), "export", str(file), "--threads", "1"]
    kill_within(
        export,
        lambda: part.exists() and part.stat().st_size > 100_000,
        lambda: file.unlink(missing_ok=True),
    )
    assert not file.exists()
    begun = part.stat().st_size
    other = here(*export, "--model", "m.pth")
    assert (other.exit_code, part.stat().st_size) == (2, begun), "that is another export"
    said = run_json(*export)
    assert said["present"] > 0
    assert said["present"] + said["copied"] == LARGE
    whole = json.loads(here("--store", tmp_path / "new", "import", file, "--json").stdout)
    assert (whole["copied"], whole["broken"]) == (LARGE, "")


def test_an_import_and_a_copy_that_were_killed_are_begun_anew(large: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    assert here("--store", large, "export", file).exit_code == 0
    for name, command in [
        ("imported", ["--store", str(tmp_path / "imported"), "import", str(file)]),
        ("copied", ["copy", str(large), str(tmp_path / "copied")]),
    ]:
        new = tmp_path / name
        kill_within(
            command,
            lambda new=new: len(list(new.glob("blobs/*/*"))) > 5,
            lambda new=new: shutil.rmtree(new, ignore_errors=True),
        )
        with open_store(str(new)) as store:
            begun = store.usage().entries
        done = here(*command, "--json")
        assert done.exit_code == 0, done.output
        said = json.loads(done.stdout)
        assert said["present"] >= begun
        assert said["present"] + said["copied"] == LARGE
        assert len(entries(new)) == LARGE
        checked = here("--store", new, "verify", "--json")
        assert checked.exit_code == 0, checked.output


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """One of each kind that lasts, empty."""
    root = tmp_path_factory.mktemp("places")
    server = shared_server()
    database = server.create_database(server.at_head)
    with ExitStack() as stack:
        redis = stack.enter_context(running())
        yield [
            f"{redis.url}?find_ms=0&prefix=one",
            f"{server.url(database, root / 'blobs')}&find_ms=0",
            f"memory: {redis.url}?find_ms=0&prefix=two",
            str(root / "file"),
        ]
    server.drop_database(database)


def test_from_place_to_place_and_back_nothing_is_lost(origin: Path, places: list[str]) -> None:
    expected = entries(origin)
    here_is = str(origin)
    for place in places:
        said = run_json("copy", here_is, place)
        assert (said["copied"], said["damaged"]) == (COUNT, 0)
        assert entries(place) == expected
        again = json.loads(here("copy", here_is, place, "--json").stdout)
        assert (again["copied"], again["present"]) == (0, COUNT)
        assert here("--store", place, "verify").exit_code == 0
        here_is = place
    with open_store(here_is) as store:
        found = store.get(IDENTITY, next(iter(expected)))
        assert found is not None


def test_a_store_in_use_is_exported_copied_and_verified(origin: Path, tmp_path: Path) -> None:
    """Others put, use and remove meanwhile: what is met is sound, and nothing fails."""
    stop = threading.Event()

    def work() -> None:
        with open_store(str(origin)) as store:
            number = 100
            while not stop.is_set():
                key = put(store, number)
                assert store.get(IDENTITY, key) is not None
                if number % 2:
                    store.delete(key)
                number += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        done = run("--store", str(origin), "export", str(tmp_path / "x"))
        copied = run("copy", str(origin), str(tmp_path / "new"))
        mended = run("--store", str(origin), "verify", "--fix")
    finally:
        stop.set()
        worker.join()
    assert (done.returncode, copied.returncode) == (0, 0), done.stderr + copied.stderr
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert len(entries(tmp_path / "new")) >= COUNT
    assert here("--store", tmp_path / "new", "import", tmp_path / "x").exit_code == 0
    assert here("--store", tmp_path / "new", "verify").exit_code == 0


def test_encrypted_states_stay_so_on_their_way(tmp_path: Path) -> None:
    one, two = tmp_path / "one.keys", tmp_path / "two.keys"
    for keys in (one, two):
        assert here("keygen", keys).exit_code == 0
    sealed = f"{tmp_path / 'sealed'}?keys={one}&codec=raw"
    with open_store(sealed) as store:
        put(store, 1, labels={"a": "b"})
    secret = make_state(1).tensors[1].data[:64].tobytes()

    def sound(place: str) -> bool:
        return here("--store", place, "verify").exit_code == 0

    def is_clear(path: Path) -> bool:
        files = [path] if path.is_file() else path.glob("blobs/*/*")
        return any(secret in file.read_bytes() for file in files)

    file, clear = tmp_path / "x", tmp_path / "clear"
    assert here("--store", sealed, "export", file).exit_code == 0
    assert here("--store", sealed, "export", clear, "--decrypt").exit_code == 0
    assert (is_clear(file), is_clear(clear)) == (False, True)

    carried = tmp_path / "carried"  # without a key, and so it stays
    assert here("--store", carried, "import", file).exit_code == 0
    assert not sound(str(carried))
    assert sound(f"{carried}?keys={one}")

    again = f"{tmp_path / 'again'}?keys={one}"
    assert here("--store", again, "import", file).exit_code == 0
    assert sound(again)

    wrong = here("--store", f"{tmp_path / 'wrong'}?keys={two}", "import", file)
    assert (wrong.exit_code, "LockedError" in wrong.stderr) == (3, True)

    other = tmp_path / "other"
    assert here("copy", sealed, f"{other}?keys={two}").exit_code == 0
    assert sound(f"{other}?keys={two}")
    assert not is_clear(other)

    copied, opened = tmp_path / "copied", tmp_path / "opened"
    assert here("copy", sealed, copied).exit_code == 0
    assert here("copy", sealed, opened, "--decrypt").exit_code == 0
    assert (sound(str(copied)), sound(str(opened))) == (False, True)
    assert (is_clear(copied), is_clear(opened)) == (False, True)
    assert entries(opened) == entries(sealed)


def test_a_copy_to_a_dead_place_ends_and_says_how_far(made: Path, tmp_path: Path) -> None:
    done = run("copy", str(made), "redis://127.0.0.1:1/0")
    assert done.returncode == 4
    assert "0 copied" in done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert here("--store", made, "export", tmp_path / "x").exit_code == 0
    dead = here("--store", "redis://127.0.0.1:1/0", "import", tmp_path / "x")
    assert (dead.exit_code, "0 imported" in dead.stderr) == (4, True)
    same = here("copy", made, made)
    assert (same.exit_code, "the same place" in same.stderr) == (2, True)
    assert here("copy", made / "none", made).exit_code == 2


@pytest.mark.parametrize("layout", ["rwkv", "rwkv-cpp", "fla"])
def test_one_state_as_another_engine_has_it(origin: Path, tmp_path: Path, layout: str) -> None:
    file = tmp_path / "state"
    key = str(next(key for key in entries(origin) if key.n_tokens == 11))
    export = ("--store", origin, "export", file, "--layout", layout)
    assert here(*export, "--key", key).exit_code == 0
    if layout == "rwkv-cpp":
        numbers = np.fromfile(file, "<f4")
        assert numbers.size * 4 == SCHEMA.nbytes
    like = ("--layout", layout, "--like", key, "--tokens", "11")
    done = here("--store", origin, "import", file, *like, "--name", "notes")
    assert done.exit_code == 0, done.output
    expected = named_key(Namespace(), "notes", IDENTITY.fingerprint, 11)
    assert done.stdout == f"stored as {expected}\n"
    with open_store(str(origin)) as store:
        found = store.get(IDENTITY, expected)
        assert found is not None
        assert found.state.tensors == make_state(1).tensors
        assert (found.entry.role, found.entry.labels) == (Role.NAMED, {"name": "notes"})
    taken = here("--store", origin, "import", file, *like, "--name", "notes")
    assert (taken.exit_code, "is stored" in taken.stderr) == (2, True)
    several = here(*export[:3], tmp_path / "other", *export[4:])
    assert (several.exit_code, "--key" in several.stderr) == (2, True)
    there = here(*export, "--key", key)
    assert (there.exit_code, "is there already" in there.stderr) == (2, True)


def test_a_named_state_has_its_namespaces_salt(
    origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = str(next(iter(entries(origin))))
    file = tmp_path / "state"
    assert here("--store", origin, "export", file, "--layout", "fla", "--key", key).exit_code == 0
    (tmp_path / "c.toml").write_text('[store.salts]\ndefault = "hush"\n')
    done = here(
        *("--config", tmp_path / "c.toml", "--store", origin, "import", file),
        *("--layout", "fla", "--like", key, "--name", "n"),
    )
    assert done.exit_code == 0, done.output
    salted = named_key(Namespace("default", b"hush"), "n", IDENTITY.fingerprint, 0)
    assert done.stdout == f"stored as {salted}\n"
    assert "hush" not in done.output


@pytest.mark.parametrize(
    ("content", "arguments", "code"),
    [
        (b"1234567", ["--layout", "rwkv-cpp"], 2),
        (b"12345678", ["--layout", "rwkv-cpp"], 2),
        (b"nonsense", ["--layout", "fla"], 3),
        (b"\2\0\0\0\0\0\0\0{}", ["--layout", "fla"], 2),
        (b"\2\0\0\0\0\0\0\0{}", ["--layout", "rwkv"], 2),
    ],
)
def test_files_that_do_not_fit_are_refused(
    made: Path, tmp_path: Path, content: bytes, arguments: list[str], code: int
) -> None:
    (tmp_path / "x").write_bytes(content)
    key = str(next(iter(entries(made))))
    done = here(
        *("--store", made, "import", tmp_path / "x", *arguments, "--like", key, "--name", "n")
    )
    assert (done.exit_code, len(entries(made))) == (code, COUNT), done.output
    unnamed = here("--store", made, "import", tmp_path / "x", *arguments)
    assert (unnamed.exit_code, "--name and --like" in unnamed.stderr) == (2, True)


def test_a_copy_shows_its_way_on_a_terminal_only(made: Path, tmp_path: Path) -> None:
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "statestore", "copy", str(made), str(tmp_path / "new")],
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    out, _ = process.communicate(timeout=60)
    said = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:
            break
        said += piece
    os.close(master)
    assert process.returncode == 0
    assert b"copying" in said
    assert re.fullmatch(r"6 copied \(.* KiB\)\n", out.decode())
