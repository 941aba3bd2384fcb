"""`statestore verify`: what is unsound is found everywhere, and mended where it can be."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from statestore import open_store
from statestore.backends.sql.file import FILTER
from tests.places.redis_servers import running
from tests.places.states import fill
from tests.statestore.cli.test_cli_moving import damage, entries, here
from tests.statestore.workers.commanded import run, run_json

COUNT = 4


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    with open_store(str(path)) as store:
        fill(store, COUNT)
    return path


def test_a_sound_store_is_sound(root: Path) -> None:
    assert run_json("--store", str(root), "verify") == {"checked": COUNT, "unsound": []}
    assert here("--store", root, "verify", "--fix").stdout == f"checked {COUNT}, unsound 0\n"
    with_one = here("--store", root, "verify", "--model", "random.pth", "--threads", "1")
    assert with_one.stdout == "checked 2, unsound 0\n"


def test_damage_is_found_among_what_is_selected(root: Path) -> None:
    states = entries(root)
    damaged = next(key for key, entry in states.items() if entry.model)
    damage(root, damaged)
    elsewhere = here("--store", root, "verify", "--key", next(k for k in states if k != damaged))
    assert elsewhere.exit_code == 0
    found = here("--store", root, "verify", "--model", "random.pth", "--fix", "--json")
    assert found.exit_code == 3
    (unsound,) = json.loads(found.stdout)["unsound"]
    assert (unsound["key"], unsound["done"]) == (str(damaged), "quarantined")
    assert "CorruptError" in unsound["problem"]


def test_a_state_without_its_blob_is_removed(root: Path) -> None:
    key = next(iter(entries(root)))
    (blob,) = root.glob(f"blobs/*/{key}.*")
    blob.unlink()
    looked = here("--store", root, "verify")
    assert (looked.exit_code, len(entries(root))) == (3, COUNT)
    fixed = here("--store", root, "verify", "--fix")
    assert fixed.exit_code == 3
    assert f"{key}  Missing: the blob has gone; removed\n" in fixed.stdout
    assert key not in entries(root)
    assert here("--store", root, "verify").exit_code == 0


def test_a_lost_catalog_is_made_anew(root: Path) -> None:
    before = entries(root)
    for file in root.glob("catalog.sqlite3*"):
        file.unlink()
    looked = here("--store", root, "verify", "--grace", "0")
    assert "sound, but named by no entry: 4 blobs (112.5 KiB); --fix" in looked.stdout
    assert entries(root) == {}
    young = here("--store", root, "verify", "--fix")
    assert (young.exit_code, entries(root)) == (0, {}), "their writers may be at work"
    fixed = run("--store", str(root), "verify", "--fix", "--grace", "0")
    assert fixed.returncode == 0
    assert fixed.stdout.startswith("catalogued 4 sound states again")
    assert set(entries(root)) == set(before)
    assert run_json("--store", str(root), "verify") == {"checked": COUNT, "unsound": []}


def test_a_damaged_catalog_says_how_it_is_made_anew(root: Path) -> None:
    before = entries(root)
    catalog = root / "catalog.sqlite3"
    catalog.write_bytes(b"damaged by a disk" * 1000)
    looked = here("--store", root, "ls")
    assert looked.exit_code == 4
    assert "move its files away (catalog.sqlite3*)" in looked.stderr
    assert "`statestore verify --fix --grace 0` makes it anew" in looked.stderr
    for file in root.glob("catalog.sqlite3*"):
        file.rename(root.with_name(file.name))
    assert here("--store", root, "verify", "--fix", "--grace", "0").exit_code == 0
    assert set(entries(root)) == set(before)


def test_what_cannot_be_catalogued_is_named(root: Path) -> None:
    junk = root / "blobs" / "00" / ("0" * 64 + "-1." + "f" * 16)
    junk.parent.mkdir(exist_ok=True)
    junk.write_bytes(b"junk")
    said = json.loads(here("--store", root, "verify", "--fix", "--grace", "0", "--json").stdout)
    (orphan,) = said["orphans"]
    assert (orphan["blob"], orphan["adopted"]) == (junk.name, False)
    assert orphan["problem"].startswith("NotAContainerError")
    shown = here("--store", root, "verify", "--grace", "0")
    assert "1 blob (4 B) left over; `statestore gc` removes them" in shown.stdout
    assert shown.exit_code == 0


def test_totals_that_drifted_are_summed_anew(root: Path) -> None:
    with closing(sqlite3.connect(root / "catalog.sqlite3")) as connection, connection:
        connection.execute("UPDATE namespace_totals SET entries = 77")
    looked = here("--store", root, "verify")
    assert (looked.exit_code, "totals: wrong; --fix" in looked.stdout) == (3, True)
    fixed = here("--store", root, "verify", "--fix", "--json")
    assert (fixed.exit_code, json.loads(fixed.stdout)["totals"]) == (3, "summed anew")
    assert here("--store", root, "verify").exit_code == 0
    assert run_json("--store", str(root), "stats")["entries"] == COUNT


def test_states_that_the_lookup_filter_hides_are_told_and_found_again(root: Path) -> None:
    with (root / FILTER).open("r+b") as file:
        file.seek(4096)
        file.write(bytes(8 << 12))
    looked = here("--store", root, "verify")
    assert looked.exit_code == 3
    assert "no lookup found 4 states, which the lookup filter lacks: --fix" in looked.stdout
    assert here("--store", root, "verify", "--model", "random.pth").exit_code == 0
    fixed = here("--store", root, "verify", "--fix", "--json")
    assert (fixed.exit_code, json.loads(fixed.stdout)["hidden"]) == (3, COUNT)
    assert run_json("--store", str(root), "verify") == {"checked": COUNT, "unsound": []}


def test_every_tier_is_looked_at(root: Path, tmp_path: Path) -> None:
    near = tmp_path / "near"
    with running() as server:
        home = f"{server.url}?find_ms=0"
        assert here("copy", root, near).exit_code == 0
        assert here("copy", root, home).exit_code == 0
        tiers = f"memory: {near} {home}"
        assert json.loads(here("--store", tiers, "verify", "--json").stdout)["checked"] == 8
        key = next(iter(entries(near)))
        damage(near, key)
        found = here("--store", tiers, "verify", "--fix")
        assert (found.exit_code, str(key) in found.stdout) == (3, True)
        assert here("--store", tiers, "verify").exit_code == 0
        with server.client() as client:
            (part,) = client.keys("*part:*" + key.hex + "*")
            client.set(part, client.get(part)[:-1])
        found = here("--store", home, "verify", "--fix", "--json")
        assert found.exit_code == 3
        assert json.loads(found.stdout)["unsound"][0]["done"] == "quarantined"


def test_a_shown_state_says_what_is_wrong_with_it(root: Path) -> None:
    key = next(iter(entries(root)))
    sound = run_json("--store", str(root), "show", key.hex)
    assert sound["container"]["sound"]
    assert sound["container"]["codec"] == "lossless"
    assert sound["container"]["provenance"]["cost_s"] == "0"
    assert [t["name"] for t in sound["container"]["tensors"]][:2] == [
        "blocks.0.att_x_prev",
        "blocks.0.att_kv",
    ]
    damage(root, key)
    shown = here("--store", root, "show", key.hex)
    assert shown.exit_code == 0
    assert "CorruptError" in shown.stdout
    (blob,) = root.glob(f"blobs/*/{key}.*")
    blob.write_bytes(b"")
    assert "TruncatedError" in here("--store", root, "show", key.hex).stdout
    blob.unlink()
    assert "the blob has gone" in here("--store", root, "show", key.hex).stdout


def test_a_state_of_another_key_holder_is_shown_as_far_as_it_is_clear(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert here("keygen", keys).exit_code == 0
    with open_store(f"{tmp_path / 's'}?keys={keys}") as store:
        fill(store, 1)
    (key,) = entries(tmp_path / "s")
    locked = json.loads(here("--store", tmp_path / "s", "show", key.hex, "--json").stdout)
    assert not locked["container"]["sound"]
    assert locked["container"]["problem"].startswith("LockedError")
    assert len(locked["container"]["key_id"]) == 16
    fixed = here("--store", tmp_path / "s", "verify", "--fix", "--json")
    assert fixed.exit_code == 3
    assert json.loads(fixed.stdout)["unsound"][0]["done"] == ""
    opened = f"{tmp_path / 's'}?keys={keys}"
    assert here("--store", opened, "verify").exit_code == 0
    assert json.loads(here("--store", opened, "show", key.hex, "--json").stdout)["container"][
        "sound"
    ]
