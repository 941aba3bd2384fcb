"""`statestore stats`, `doctor`, `bench`, `explain`, `config` by real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import start_http_server
from redis import Redis

from statestore import ChunkRule, Identity, Namespace, StateStore, errors, open_store, plan
from statestore.backends.tallies import Tally, tallies
from statestore.cli import main
from statestore.cli.commands import explain
from statestore.entry import EntryFilter
from statestore.keys import KeyedBoundary
from tests.places.postgres_servers import shared_server
from tests.places.redis_servers import running
from tests.places.small_disks import fill as fill_disk
from tests.places.small_disks import mounted_tmpfs
from tests.places.states import IDENTITY, make_state
from tests.statestore.workers.commanded import run, run_json

SALT = "s4lt-of-the-tenant"
DEAD = "redis://:hush@127.0.0.1:1/0?connect_timeout_s=0.2"


def boundaries(segments: Sequence[Sequence[int]], name: str = "default") -> list[KeyedBoundary]:
    salt = SALT.encode() if name == "tenant" else b""
    made = plan(segments, IDENTITY.fingerprint, ChunkRule(), Namespace(name, salt))
    return list(made.boundaries)


def put(store: StateStore, boundary: KeyedBoundary, **options: Any) -> None:
    name = options.pop("namespace", "default")
    store.put(
        Identity(IDENTITY.fingerprint, name),
        boundary.key,
        make_state(1),
        token_digest=boundary.token_digest,
        role=boundary.role,
        **options,
    )


def fill(store: StateStore) -> None:
    """Three states of two namespaces and two models, of which two were hit three times."""
    put(store, boundaries([[1] * 300])[0], model="a.pth", cost_s=2.0)
    put(store, boundaries([[2] * 600])[0], model="b.pth", cost_s=5.0, pinned=True)
    put(store, boundaries([[1] * 64], "tenant")[0], model="a.pth", cost_s=0.5, namespace="tenant")
    for entry in store.list():
        for _ in range({300: 2, 64: 1}.get(entry.key.n_tokens, 0)):
            store.touch(entry)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("place") / "a store"
    with open_store(str(path)) as store:
        fill(store)
    return path


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    options = ("--requirepass", "hush", "--maxmemory", "200mb", "--maxmemory-policy", "allkeys-lru")
    with running(*options) as server:
        yield f"redis://:hush@127.0.0.1:{server.port}/0"


def listed(url: str) -> list[str]:
    with open_store(url) as store:
        return sorted(str(entry.key) for entry in store.list())


def files(place: Path) -> list[str]:
    found = (path for path in place.rglob("*") if path.is_file())
    return sorted(path.name for path in found if not path.name.startswith("catalog"))


# Tallies.


@pytest.mark.parametrize("kind", ["file", "memory", "redis", "postgresql"])
def test_tallies_are_the_sums_of_the_entries(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = shared_server() if kind == "postgresql" else None
    database = "" if server is None else server.create_database(server.at_head)
    urls = {"file": str(tmp_path / "s"), "memory": "memory:"}
    if server is not None:
        urls[kind] = server.url(database, tmp_path / "blobs")
    url = urls.get(kind) or f"{request.getfixturevalue('redis_url')}?prefix=tallies"
    with open_store(url) as store:
        fill(store)
        entry = next(store.list(EntryFilter(model="b.pth")))
        assert store.quarantine(entry, "a test")
        found = {(tally.namespace, tally.model): tally for tally in tallies(store.backend)}
        size = entry.blob_bytes
        state = entry.state_bytes
        assert found == {
            ("default", "a.pth"): Tally("default", "a.pth", 1, size, state, 0, 0, 1, 2, 600, 4.0),
            ("default", "b.pth"): Tally("default", "b.pth", 1, size, state, 1, 1, 0, 0, 0, 0.0),
            ("tenant", "a.pth"): Tally("tenant", "a.pth", 1, size, state, 0, 0, 1, 1, 64, 0.5),
        }
        assert [t.model for t in tallies(store.backend, "tenant")] == ["a.pth"]
        assert tallies(store.backend, "nobody") == []
    if server is not None:
        server.drop_database(database)


# stats


def test_stats_say_what_hits_saved(place: Path) -> None:
    seen = run_json("--store", str(place), "stats")
    assert (seen["entries"], seen["pinned"], seen["hits"], seen["used"]) == (3, 1, 3, 2)
    assert (seen["tokens_saved"], seen["seconds_saved"]) == (664, 4.5)
    (tier,) = seen["tiers"]
    groups = {(group["namespace"], group["model"]): group for group in tier["groups"]}
    assert set(groups) == {("default", "a.pth"), ("default", "b.pth"), ("tenant", "a.pth")}
    assert sum(group["blob_bytes"] for group in groups.values()) == seen["blob_bytes"]
    one = run_json("--store", str(place), "stats", "--namespace", "tenant")
    assert (one["entries"], one["tokens_saved"], len(one["tiers"][0]["groups"])) == (1, 64, 1)
    shown = run("--store", str(place), "stats").stdout
    assert "664 tokens" in shown
    assert "67% of the states" in shown


def test_stats_of_tiers_go_on_without_the_one_that_is_down(place: Path) -> None:
    url = f"memory:?budget=1MiB {DEAD} {place}"
    seen = run_json("--store", url, "stats")
    assert [tier["tier"] for tier in seen["tiers"]] == ["memory", "redis", "file"]
    assert "127.0.0.1:1" in seen["tiers"][1]["error"]
    assert seen["tiers"][2]["entries"] == seen["entries"] == 3
    done = run("--store", f"{place} {DEAD}", "stats")
    assert done.returncode == 4, "the last one holds everything"
    assert "664 tokens" in done.stdout
    assert "hush" not in done.stdout + done.stderr


def look(store: StateStore, *prompts: list[int], namespace: str = "default") -> None:
    """Look for these prompts as a runtime does."""
    for tokens in prompts:
        keys = [boundary.key for boundary in reversed(boundaries([tokens], namespace))]
        store.find(Identity(IDENTITY.fingerprint, namespace), keys, touch=False)


def test_stats_have_the_hit_rate_of_lookups(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    with open_store(place) as store:
        fill(store)
        look(store, [1] * 300, [1] * 300, [2] * 600, [9] * 800)
        look(store, [1] * 64, [2] * 64, namespace="tenant")
        unknown = Identity(bytes(range(32, 64)))
        store.find(unknown, [boundaries([[9] * 40])[0].key])
    for quiet in (["ls"], ["doctor"], ["bench", "--seconds", "0.1"], ["stats"]):
        run("--store", place, *quiet)
    seen = run_json("--store", place, "stats")
    assert (seen["lookups"], seen["found"], seen["tokens_asked"]) == (7, 4, 2168)
    assert (seen["tokens_found"], seen["seconds_found"]) == (1264, 9.5)
    assert (seen["hit_rate"], seen["token_hit_rate"]) == (4 / 7, 1264 / 2168)
    groups = {(g["namespace"], g["model"]): g for g in seen["tiers"][0]["groups"]}
    # two models' states have one fingerprint here: its lookups are the larger one's
    rates = {whose: (g["lookups"], g["hit_rate"]) for whose, g in groups.items() if g["lookups"]}
    assert rates.pop(("default", unknown.fingerprint.hex()[:12])) == (1, 0.0)
    assert rates.pop(("tenant", "a.pth")) == (2, 0.5)
    assert list(rates.values()) == [(4, 0.75)]
    assert groups["default", unknown.fingerprint.hex()[:12]]["entries"] == 0
    tenant = run_json("--store", place, "stats", "--namespace", "tenant")
    assert (tenant["lookups"], tenant["found"], tenant["token_hit_rate"]) == (2, 1, 0.5)
    shown = run("--store", place, "stats").stdout
    assert "7 in 0 s, of which 57.1% found a state, with 58.3% of the tokens" in re.sub(
        r"in \d+ s", "in 0 s", shown
    )


def test_what_is_evicted_leaves_its_lookups(tmp_path: Path) -> None:
    place = str(tmp_path / "s")
    with open_store(place) as store:
        fill(store)
        look(store, [1] * 300)
    assert run("--store", place, "evict", "--to", "0", "--yes").returncode == 0
    seen = run_json("--store", place, "stats")
    assert (seen["hits"], seen["lookups"], seen["found"], seen["tokens_found"]) == (0, 1, 1, 300)


def test_stats_of_tiers_have_each_ones_hit_rate(tmp_path: Path) -> None:
    home = str(tmp_path / "s")
    url = f"memory: {home}"
    with open_store(url) as store:
        put(store, boundaries([[1] * 300])[0], model="a.pth", cost_s=2.0)
    with open_store(url) as store:
        for _ in range(2):  # the second finds it in memory
            keys = [boundary.key for boundary in reversed(boundaries([[1] * 300]))]
            assert store.find(IDENTITY, keys) is not None
            assert store.flush(60)
        look(store, [9] * 800, [8] * 800)
    seen = run_json("--store", url, "stats")
    assert (seen["lookups"], seen["found"], seen["tokens_found"]) == (4, 2, 600)
    near, far = seen["tiers"]
    assert (near["lookups"], near["found"], near["hit_rate"], near["entries"]) == (4, 1, 0.25, None)
    assert [(g["model"], g["lookups"]) for g in near["groups"]] == [("a.pth", 4)]
    assert (far["lookups"], far["found"], far["entries"]) == (3, 1, 1)
    assert "all tiers  4 in" in run("--store", url, "stats").stdout
    alone = run_json("--store", home, "stats")
    assert (alone["lookups"], alone["found"]) == (3, 1)
    with open_store(home) as store:  # others come to the home directly: more is found than asked
        look(store, *[[1] * 300] * 5)
    assert run_json("--store", url, "stats")["hit_rate"] is None
    broken = run_json("--store", f"memory: {DEAD} {home}", "stats")
    assert (broken["lookups"], broken["tiers"][2]["lookups"]) == (None, 8)


def test_stats_take_lookups_from_servers(place: Path) -> None:
    with open_store(f"memory: {place}") as store:
        keys = [boundaries([[1] * 300])[0].key]
        for wanted in (keys, keys, keys, [boundaries([[9] * 40])[0].key]):
            store.find(IDENTITY, wanted, touch=False)
        server, thread = start_http_server(0, "127.0.0.1", store.metrics.registry)
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        twice = ("--metrics", url, "--metrics", url)
        seen = run_json("--store", str(place), "stats", *twice)
        shown = run("--store", str(place), "stats", "--metrics", url).stdout
        server.shutdown()
        server.server_close()
        thread.join()
    servers = seen["servers"]
    assert (servers["hit_rate"], servers["lookups"]) == (0.75, {"hit": 6, "miss": 2, "error": 0})
    assert sum(servers["tier_hits"].values()) == 6
    assert "servers  4 lookups, of which 75.0% found a state" in shown
    assert run("--store", str(place), "stats", "--metrics", url).returncode == 4
    assert run("--store", str(place), "stats", "--metrics", "ftp://h").returncode == 2


class Guarded(BaseHTTPRequestHandler):
    """Metrics for those who know the password."""

    def do_GET(self) -> None:
        known = b64encode(b"me:s3cr/et").decode()
        self.send_response(200 if self.headers["Authorization"] == f"Basic {known}" else 401)
        self.end_headers()
        self.wfile.write(b'statestore_lookups_total{outcome="hit"} 2.0\n')

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_password_of_servers_is_sent_and_not_shown(place: Path) -> None:
    stats = ("--store", str(place), "stats", "--json", "--metrics")
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        at = f"127.0.0.1:{server.server_port}/metrics"
        known = run(*stats, f"http://me:s3cr%2Fet@{at}")
        others = [run(*stats, url) for url in (f"http://me:s3cret@{at}", f"http://{at}?t=s3cret")]
        server.shutdown()
        thread.join()
    assert json.loads(known.stdout)["servers"]["lookups"] == {"hit": 2}
    others += [run(*stats, f"{url}@127.0.0.1:1") for url in ("http://me:s3cret", "me:s3cret")]
    others.append(run(*stats, "http://127.0.0.1:s3cret@h:port/metrics"))
    assert [done.returncode for done in others] == [4, 4, 4, 2, 2]
    assert not any("s3cret" in done.stdout + done.stderr for done in others)
    assert all(done.stderr.count("\n") == 1 for done in others)


@pytest.mark.parametrize("as_json", [False, True])
def test_stats_watch_sees_what_is_put(as_json: bool, tmp_path: Path) -> None:
    url = str(tmp_path / "s")
    with open_store(url) as store:
        put(store, boundaries([[1] * 40])[0])
    command = [sys.executable, "-m", "statestore", "--store", url, "stats", "--watch", "0.1"]
    command += ["--json"] if as_json else []

    def entries(line: str) -> int:
        return json.loads(line)["entries"] if as_json else int(line.split()[2])

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        first = watcher.stdout.readline()
        with open_store(url) as store:
            put(store, boundaries([[2] * 40])[0])
        changed = next(line for line in watcher.stdout if entries(line) == 2)
        watcher.send_signal(signal.SIGINT)
        watcher.stdout.read()
        assert watcher.wait(30) == 0
    assert entries(first) == 1
    assert as_json or "entries 2 (+1)" in changed


def on_a_terminal(*arguments: str, until: str = "", **environ: str) -> tuple[str, int]:
    """What a command writes to a terminal; with `until`, Ctrl-C comes once that was seen."""
    keeper, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", **environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "statestore", *arguments],
        stdout=terminal, stderr=terminal, stdin=terminal, env=environment,
    )  # fmt: skip
    os.close(terminal)
    shown, patience = "", threading.Timer(60, process.kill)  # where nothing comes
    patience.start()
    try:
        while piece := os.read(keeper, 4096):
            shown += piece.decode(errors="replace")
            if until and until in shown:
                process.send_signal(signal.SIGINT)
                until = ""
    except OSError:  # Linux says so at the end of a terminal
        pass
    finally:
        patience.cancel()
        os.close(keeper)
    return shown, process.wait(60)


def test_a_terminal_gets_a_live_table_and_colours(place: Path) -> None:
    shown, code = on_a_terminal("--store", str(place), "stats", "--watch", "0.1", until="b.pth")
    assert (code, "\x1b[" in shown, "a.pth" in shown) == (0, True, True)
    shown, code = on_a_terminal("--store", str(place), "explain", "nowhere")
    assert (code, "\x1b[31m" in shown) == (2, True)
    shown, code = on_a_terminal("--store", str(place), "explain", "nowhere", NO_COLOR="1")
    assert (code, "nowhere" in shown, "\x1b[" in shown) == (2, True, False)


def test_a_terminal_that_knows_no_escapes_gets_none(place: Path) -> None:
    for command in ("ls", "stats", "doctor", "show 00", "config show"):
        shown, _ = on_a_terminal("--store", str(place), *command.split(), TERM="dumb")
        assert (bool(shown), "\x1b" in shown) == (True, False), command
    watch = ("--store", str(place), "stats", "--watch", "0.1")
    shown, code = on_a_terminal(*watch, until="entries 3", TERM="dumb")
    assert (code, "\x1b" in shown) == (0, False)


# doctor


def findings(seen: dict[str, Any], level: str = "") -> dict[str, dict[str, Any]]:
    """By place and check, the last one of a name."""
    return {
        f"{section['name']} {finding['check']}": finding
        for section in seen["sections"]
        for finding in section["findings"]
        if not level or finding["level"] == level
    }


def doctor(*options: str, code: int = 0) -> dict[str, Any]:
    done = run(*options, "doctor", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["exit_code"] == code
    assert "hush" not in done.stdout + done.stderr
    return seen


#: What a busy machine may be too slow for: `doctor` says so then, and is right.
TIMED = ("put", "find", "lookup", "sync")


def doubts_of(seen: dict[str, Any]) -> dict[str, Any]:
    """Its warnings, but for those that tell of this moment."""
    doubts = findings(seen, "warning")
    return {name: doubt for name, doubt in doubts.items() if doubt["check"] not in TIMED}


def test_doctor_finds_a_directory_healthy_and_leaves_nothing(place: Path) -> None:
    before = listed(str(place)), files(place)
    seen = doctor("--store", f"{place}?budget=1MiB")
    assert seen["healthy"]
    good = findings(seen, "ok")
    for check in (
        "tables",
        "holds",
        "sample",
        "leases",
        "orphans",
        "put",
        "find",
        "lookup",
        "sync",
    ):
        assert f"file {check}" in good, seen
    assert 0 < good["file find"]["facts"]["seconds"] < 60
    assert good["settings settings"]["facts"]["origin"] == "--store"
    assert (listed(str(place)), files(place)) == before, "a trial drops nothing, and goes"
    shown = run("--store", str(place), "doctor")
    assert shown.returncode == 0
    assert "healthy" in shown.stdout.splitlines()[-1]


def test_doctor_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "s")) as store:
        put(store, boundaries([[1] * 40])[0])
        put(store, boundaries([[2] * 40])[0])
        assert store.quarantine(next(store.list()), "a test")
    orphan = tmp_path / "s" / "blobs" / "00" / ("0" * 64 + "-1." + "f" * 16)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"left over")
    os.utime(orphan, (1, 1))
    (tmp_path / "s").chmod(0o755)
    config = tmp_path / "c.toml"
    config.write_text("[store]\nurl = './s?budget=20KiB'\nsalts = {a = 'hush'}\n")
    config.chmod(0o644)
    doubts = doubts_of(doctor("--config", str(config)))
    assert set(doubts) == {
        "settings settings", "file budget", "file quarantined", "file orphans", "file access"
    }  # fmt: skip
    assert "chmod 600" in doubts["settings settings"]["remedy"]
    assert "evict" in doubts["file budget"]["remedy"]
    assert "gc" in doubts["file orphans"]["remedy"]
    for blob in (tmp_path / "s" / "blobs").rglob("*.*"):
        blob.write_bytes(b"x" + blob.read_bytes()[1:])
    failures = findings(doctor("--config", str(config), code=3), "failure")
    assert set(failures) == {"file sample"}
    assert "verify --fix" in failures["file sample"]["remedy"]


def test_doctor_fails_over_a_catalog_of_a_newer_release(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "s")) as store:
        fill(store)
    with closing(sqlite3.connect(tmp_path / "s" / "catalog.sqlite3")) as catalog, catalog:
        catalog.execute("UPDATE alembic_version SET version_num = '9999'")
    failures = findings(doctor("--store", str(tmp_path / "s"), code=4), "failure")
    assert set(failures) == {"file tables"}
    assert "pip install -U" in failures["file tables"]["remedy"]
    assert "✗ tables" in run("--store", str(tmp_path / "s"), "doctor").stdout


def test_doctor_tells_good_from_bad_in_any_locale(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "s")) as store:
        fill(store)
    (tmp_path / "s" / "catalog.sqlite3").write_bytes(b"no database" * 100)
    command = [sys.executable, "-m", "statestore", "--store", str(tmp_path / "s"), "doctor"]
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, capture_output=True, env=latin, check=False)
    assert done.returncode == 4
    lines = done.stdout.decode("latin-1").splitlines()
    assert "?" not in "".join(line[:4] for line in lines)
    assert any(line.startswith("  + settings") for line in lines)
    assert any(line.startswith("  x tables") for line in lines)


def test_doctor_tells_one_cause_once(tmp_path: Path) -> None:
    """A catalog that is none fails neither twice, nor with advice that is beside the point."""
    with open_store(str(tmp_path / "s")):
        pass
    (tmp_path / "s" / "catalog.sqlite3").write_bytes(b"no database" * 100)
    done = run("--store", str(tmp_path / "s"), "doctor")
    assert done.returncode == 4
    assert done.stdout.count("file is not a database") == 1
    assert "who owns it" not in done.stdout
    assert "not healthy: 1 failure\n" in done.stdout


def test_doctor_minds_a_filter_that_hides_states_and_gc_mends_it(place: Path) -> None:
    with (place / "catalog.sqlite3-filter").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(8 << 12))
    (doubt,) = doubts_of(doctor("--store", str(place))).values()
    assert doubt["check"] == "found"
    assert "gc" in doubt["remedy"]
    assert run("--store", str(place), "gc").returncode == 0
    assert not doubts_of(doctor("--store", str(place)))


def test_doctor_of_servers_looks_at_each_tier(redis_url: str, tmp_path: Path) -> None:
    server = shared_server()
    database = server.create_database("template1")
    postgres = server.url(database, tmp_path / "blobs")
    url = f"{redis_url}?prefix=doctor&budget=190MiB {DEAD} {postgres}"
    seen = doctor("--store", url, code=4)
    failures = findings(seen, "failure")
    assert set(failures) == {"redis2 opens", "postgresql opens"}
    assert "db upgrade" in failures["postgresql opens"]["text"]
    assert "server" in failures["redis2 opens"]["remedy"]
    doubts = doubts_of(seen)
    assert set(doubts) == {"redis memory", "redis policy", "postgresql tables"}
    assert doubts["postgresql tables"]["remedy"] == "statestore db upgrade"
    assert "noeviction" in doubts["redis policy"]["remedy"]
    assert "redis clock" in findings(seen, "ok")
    assert run("--store", postgres, "db", "upgrade").returncode == 0
    good = findings(doctor("--store", postgres), "ok")
    assert {"postgresql clock", "postgresql connections", "postgresql tables"} <= set(good)
    server.drop_database(database)


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [("typo", 2, "no store"), (DEAD, 4, "127.0.0.1:1"), ("ftp://h/x", 2, "ftp://")],
)
def test_doctor_ends_with_the_first_failure(
    url: str, code: int, words: str, tmp_path: Path
) -> None:
    done = run("--store", str(tmp_path / url) if url == "typo" else url, "doctor")
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "typo").exists()


def test_a_user_of_least_rights_is_looked_after_too(redis_url: str) -> None:
    rights = "~least:* &least:* +@read +@write +@scripting +@pubsub +@connection +cluster"
    url = redis_url.replace(":hush@", "least:hush@") + "?prefix=least&find_ms=0"
    with closing(Redis.from_url(redis_url)) as client:
        client.execute_command("ACL", "SETUSER", "least", "on", ">hush", *rights.split())
        assert run("--store", url, "bench", "--seconds", "0", "--state", "tiny").returncode == 0
        doubts = doubts_of(doctor("--store", url))
        assert "+info +time" in doubts["redis server"]["remedy"]
        client.execute_command("ACL", "SETUSER", "least", "+info", "+time")
        assert "redis clock" in findings(doctor("--store", url), "ok")
        assert list(client.scan_iter("least:bench:*")) == []
        client.execute_command("ACL", "DELUSER", "least")


def test_doctor_of_a_full_disk_says_so(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", "70m"):
        url = str(tmp_path / "disk" / "s")
        with open_store(url) as store:
            put(store, boundaries([[1] * 40])[0])
        fill_disk(tmp_path / "disk" / "rest")
        failures = findings(doctor("--store", url, code=4), "failure")
    assert {"file disk", "file sync"} <= set(failures)
    assert "evict" in failures["file disk"]["remedy"]


def test_doctor_minds_a_key_that_others_can_read(tmp_path: Path) -> None:
    keys = tmp_path / "states.keys"
    assert run("keygen", str(keys)).returncode == 0
    url = f"{tmp_path / 's'}?keys={keys}"
    with open_store(url) as store:
        put(store, boundaries([[1] * 40])[0])
    assert "file keys" in findings(doctor("--store", url), "ok")
    keys.chmod(0o644)
    assert "chmod 600" in findings(doctor("--store", url), "warning")["file keys"]["remedy"]
    without = findings(doctor("--store", str(tmp_path / "s"), code=3), "failure")
    assert "keys=" in without["file sample"]["remedy"]


# bench


def test_bench_measures_and_leaves_nothing(place: Path, redis_url: str) -> None:
    before = listed(str(place)), files(place)
    url = f"memory: {redis_url}?prefix=bench {place}?budget=90KiB"
    seen = run_json("--store", url, "bench", "--seconds", "0", "--state", "tiny")["places"]
    assert [place["tier"] for place in seen] == ["memory", "redis", "file"]
    for measured in seen:
        (state,) = measured["states"]
        plain = [] if measured["tier"] == "memory" else [state["plain_write"], state["plain_read"]]
        assert [lookup["tokens"] for lookup in measured["lookups"]] == [1024, 32_768]
        for times in (state["put"], state["find"], *measured["lookups"], *plain):
            assert 0 < times["median_s"] <= times["p90_s"]
            assert times["count"] >= 3
    assert seen[0]["states"][0]["plain_write"] is None
    assert (listed(str(place)), files(place)) == before, "no state went to make room"
    assert listed(f"{redis_url}?prefix=bench") == []


def test_bench_speaks_plainly_and_fails_clearly(place: Path) -> None:
    done = run("--store", str(place), "bench", "--seconds", "0", "--state", "0.1B")
    assert done.returncode == 0, done.stderr
    assert "A state of a 0.1B model is back in" in done.stdout
    assert "a plain write with fsync" in done.stdout
    assert run("--store", DEAD, "bench", "--seconds", "0").returncode == 4
    assert run("--store", str(place), "bench", "--state", "huge").returncode == 2


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_what_a_stopped_bench_leaves_goes_by_itself(
    signal_number: signal.Signals, tmp_path: Path
) -> None:
    url = str(tmp_path / "s")
    with open_store(url) as store:
        put(store, boundaries([[1] * 40])[0])
        before = files(tmp_path / "s")
        command = [sys.executable, "-m", "statestore", "--store", url, "bench", "--seconds", "60"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as bench:
            while store.usage().entries < 2:
                assert bench.poll() is None
            bench.send_signal(signal_number)
            assert bench.wait(60) == (130 if signal_number is signal.SIGINT else -signal.SIGKILL)
        left = [entry for entry in store.list() if entry.namespace.startswith("trial-")]
        if signal_number is signal.SIGINT:
            assert left == []
        assert all(entry.expires_at and entry.expires_at < store.now() + 600 for entry in left)
        for entry in left:
            assert store.update(entry.key, expires_at=1.0)
        store.sweep(0.0)
        assert files(tmp_path / "s") == before


# explain


def test_explain_takes_token_ids(place: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("1 " * 300 + "\n\n" + "7 " * 40)
    digest = IDENTITY.fingerprint.hex()
    base = ("--store", str(place), "explain", str(prompt))
    seen = run_json(*base, "--fingerprint", digest)
    assert (seen["tokens"], seen["found_tokens"]) == (340, 300)
    assert [row["why"] for row in seen["boundaries"]] == ["found", "never stored"]
    assert seen["found"] == seen["boundaries"][0]["key"] == str(boundaries([[1] * 300])[0].key)
    assert run_json(*base) == seen, "all stored states have that fingerprint"
    other = run_json(*base, "--fingerprint", "00" * 32)
    assert (other["found"], other["boundaries"][0]["why"]) == (None, "other fingerprint")
    shown = run(*base).stdout
    assert "finds the first 300 of 340 tokens" in shown
    assert "40 are to be computed" in shown


def test_explain_reads_json_from_stdin_and_a_fingerprints_file(place: Path, tmp_path: Path) -> None:
    made = tmp_path / "fingerprint.json"
    made.write_text(
        json.dumps({"digest": IDENTITY.fingerprint.hex(), "chunk": 256, "min_chunk": 32})
    )
    tokens = json.dumps([[1] * 100, [1] * 200])
    base = ("--store", str(place), "explain", "-", "--fingerprint", str(made), "--json")
    done = run(*base, stdin=tokens)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["boundaries"][-1]["why"] == "other segments"
    flat = run(*base, stdin=json.dumps([1] * 300))
    assert json.loads(flat.stdout)["boundaries"][-1]["why"] == "no output"


def test_explain_says_how_to_choose_among_fingerprints(tmp_path: Path) -> None:
    place = str(tmp_path / "s")

    def stored(model: str, number: int) -> None:
        digest = bytes([number]) * 32
        [made] = plan([[number] * 64], digest, ChunkRule()).boundaries
        with open_store(place) as store:
            store.put(
                Identity(digest), made.key, make_state(1), token_digest=made.token_digest,
                role=made.role, model=model,
            )  # fmt: skip

    def said(*options: str) -> str:
        done = run("--store", place, "explain", "-", *options, stdin="1 2")
        assert done.returncode == 2, done.stdout
        return done.stderr

    stored("one.pth", 1)
    stored("one.pth", 2)
    assert "several settings of one model" in said()
    assert "01" * 32 in said()
    stored("two.pth", 3)
    assert "give --model or --fingerprint" in said()
    assert "several settings of one model" in said("--model", "one.pth")
    chosen = run("--store", place, "explain", "-", "--model", "two.pth", stdin="1 2")
    assert "2 tokens are to be computed" in chosen.stdout, chosen.stderr


def test_explain_looks_at_so_many_states_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a large store costs seconds; that of the states in use is what is wanted."""
    place = str(tmp_path / "s")
    for number in (1, 2, 3):
        digest = bytes([max(number, 2)]) * 32
        [made] = plan([[number] * 64], digest, ChunkRule()).boundaries
        with open_store(place) as store:
            store.put(
                Identity(digest), made.key, make_state(1), token_digest=made.token_digest,
                role=made.role,
            )  # fmt: skip
    tokens = json.dumps([[3] * 64, [1] * 40])
    command = ["--store", place, "explain", "-"]
    whole = CliRunner().invoke(main, command, input=tokens)
    assert (whole.exit_code, "several settings" in whole.stderr) == (2, True)
    monkeypatch.setattr(explain, "LOOKED_AT", 1)
    one = CliRunner().invoke(main, command, input=tokens)
    assert "finds the first 64 of 104" in one.stdout
    assert "that of the 1 state used last" in one.stderr
    chosen = CliRunner().invoke(main, [*command, "--fingerprint", "03" * 32], input=tokens)
    assert (chosen.stdout, chosen.stderr) == (one.stdout, "")


def test_explain_knows_a_tenants_salt_from_the_settings(place: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.json"
    prompt.write_text(json.dumps([[1] * 64, [2] * 64]))
    config = tmp_path / "c.toml"
    config.write_text(
        f"[store]\nurl = '{place}'\nnamespace = 'tenant'\nsalts = {{tenant = '{SALT}'}}\n"
    )
    salted = run_json("--config", str(config), "explain", str(prompt))
    assert salted["found_tokens"] == 64
    bare = run_json("--store", str(place), "explain", str(prompt), "--namespace", "tenant")
    assert bare["found_tokens"] == 0
    config.write_text(config.read_text().replace(SALT, "another"))
    assert run_json("--config", str(config), "explain", str(prompt))["found_tokens"] == 0


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("one two", (), "not token ids"),
        ("[1, [2]]", (), "list of token ids"),
        ("[[1.5]]", (), "list of token ids"),
        ("[" * 100_000, (), "not JSON"),
        ("-1 5", (), "segment 0"),
        ("", (), "empty"),
        ("1 2", ("--fingerprint", "abc"), "64 hex digits"),
        ("1 2", ("--namespace", "nobody"), "give --fingerprint"),
        ("1 2", ("--min-chunk", "999"), "min_chunk"),
    ],
)
def test_explain_refuses_what_are_no_tokens(
    place: Path, content: str, options: tuple[str, ...], words: str
) -> None:
    done = run("--store", str(place), "explain", "-", *options, stdin=content)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


# config


def test_config_show_says_where_values_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        "[store]\nurl = 'redis://:hush@h:1/0'\nsalts = {a = 'hush'}\n[server]\nport = 9000\n"
    )
    monkeypatch.setenv("RWKV_STATESTORE_CONFIG", str(file))
    monkeypatch.setenv("RWKV_SERVER_PORT", "9001")
    monkeypatch.setenv("RWKV_SERVER_PROT", "9002")
    seen = run_json("--store", "postgresql://me:hush@h/db", "config", "show")
    values = {row["name"]: (row["value"], row["source"], row["origin"]) for row in seen["settings"]}
    assert seen["file"] == str(file)
    assert seen["strays"] == ["RWKV_SERVER_PROT"]
    assert values["store.url"] == ("postgresql://me:***@h/db", "flag", "--store")
    assert values["server.port"] == (9001, "environment", "RWKV_SERVER_PORT")
    assert values["store.salts"] == ({"a": "***"}, "file", f"{file}, line 3")
    assert values["server.host"] == ("127.0.0.1", "default", "default")
    shown = run("config", "show")
    assert shown.returncode == 0
    assert "hush" not in shown.stdout + shown.stderr
    assert "RWKV_SERVER_PROT" in shown.stderr
    file.write_text("[server]\nprot = 1\n")
    refused = run("config", "show")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"{file}, line 2" in refused.stderr
    assert "'port'" in refused.stderr
    assert run("completion", "bash").returncode == 0, "a shell starts all the same"


# help and what it loads


def test_help_and_completion_load_nothing_heavy() -> None:
    heavy = "{'numpy', 'sqlalchemy', 'redis', 'rich', 'torch', 'msgpack', 'statestore.store'}"
    code = (
        "import sys\nfrom statestore.cli import main\n"
        f"main(['--help'], standalone_mode=False)\nprint(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "program",
    [[sys.executable, "-m", "statestore"], [str(Path(sys.executable).with_name("statestore"))]],
    ids=["module", "script"],
)
def test_the_module_and_the_script_are_the_command(program: list[str], place: Path) -> None:
    """Other tests fork from a process that has loaded it."""
    words = [*program, "--store", str(place)]
    done = subprocess.run([*words, "stats", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["entries"] == 3
    missed = subprocess.run([*words, "show", "abcdef"], capture_output=True, text=True, check=False)
    assert (missed.returncode, missed.stderr.count("\n")) == (5, 1)


@pytest.mark.parametrize("arguments", ["ls", "stats --json", "verify"])
def test_a_stdout_that_is_closed_is_as_none(place: Path, arguments: str) -> None:
    words = f'"$0" -W error -m statestore --store "$1" {arguments} >&-'
    done = subprocess.run(
        ["sh", "-c", words, sys.executable, str(place)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [("ls",), ("export", "-"), ("stats", "--json")])
def test_an_output_that_cannot_be_written_is_one_line(
    place: Path, arguments: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "statestore", "--store", str(place), *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 4
    assert done.stderr == "statestore: the output: No space left on device\n"


def test_a_reader_that_has_enough_ends_a_listing(place: Path) -> None:
    listing = f"{sys.executable} -m statestore --store '{place}' stats --watch 0.1 | head -n 1"
    done = subprocess.run(["sh", "-c", listing], capture_output=True, text=True, check=False)
    assert "  entries " in done.stdout
    assert done.stderr == ""


def test_help_lists_the_exit_codes_of_the_error_tree() -> None:
    shown = run("--help").stdout.partition("Exit codes:")[2].partition("Options:")[0]
    told = {int(line.split()[0]) for line in shown.splitlines() if line.strip()[:1].isdigit()}
    tree = [errors.StateStoreError]
    for error in tree:
        tree += error.__subclasses__()
    assert told == {error.exit_code for error in tree} | {0, 130}


# A store in use.

WRITER = """
import itertools, sys
from statestore import open_store
from tests.statestore.cli.test_cli_operating import boundaries, put
with open_store(sys.argv[1]) as store:
    for number in itertools.count(10):
        put(store, boundaries([[number] * 40])[0])
        if number == 10:
            print("begun", flush=True)
        if number > 60:
            store.delete(boundaries([[number - 50] * 40])[0].key)
"""


def test_commands_work_while_a_worker_writes(tmp_path: Path) -> None:
    url = str(tmp_path / "s")
    command = [sys.executable, "-c", WRITER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "begun\n"
            for words in (
                ["stats"],
                ["doctor"],
                ["bench", "--seconds", "0", "--state", "tiny"],
                ["explain", "-", "--fingerprint", IDENTITY.fingerprint.hex()],
            ):
                done = run("--store", url, *words, "--json", stdin="1 2 3")
                assert done.returncode == 0, done.stdout + done.stderr
                json.loads(done.stdout)
            assert writer.poll() is None
        finally:
            writer.kill()
    assert run("--store", url, "verify").returncode == 0
