"""The `statestore` command on Redis, PostgreSQL, tiers, budgets and encrypted stores."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from statestore import open_store
from tests.places.postgres_servers import SECRET, shared_server
from tests.places.redis_servers import running
from tests.places.states import fill
from tests.statestore.workers.commanded import run, run_json

PASSWORD = "hush@/:hush"


def refused(code: int, *arguments: str) -> str:
    """The one line that a command which failed with `code` has printed."""
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with running("--requirepass", PASSWORD) as server:
        yield f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}/0"


@pytest.fixture(params=["redis", "postgresql", "tiers"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store with three states, in a place that asks for a password."""
    if request.param == "postgresql":
        server = shared_server()
        database = server.create_database("template1")
        address = f"{server.url(database, tmp_path / 'blobs')}&find_ms=0"
        assert run("--store", address, "db", "upgrade").returncode == 0
    else:
        address = f"{request.getfixturevalue('redis_url')}?find_ms=0&prefix={request.param}"
        address = f"memory: {address}" if request.param == "tiers" else address
    with open_store(address) as store:
        fill(store, 3)
    yield address
    if request.param == "postgresql":
        server.drop_database(database)
    else:
        assert run("--store", address, "evict", "--to", "0", "--yes").returncode == 0


def test_a_place_is_looked_at_checked_and_emptied(url: str) -> None:
    rows = run_json("--store", url, "ls")
    key = rows[0]["key"]
    assert len(rows) == 3
    assert run_json("--store", url, "show", key[:16]).items() >= rows[0].items()
    assert run_json("--store", url, "stats")["blob_bytes"] == sum(r["blob_bytes"] for r in rows)
    assert run_json("--store", url, "stats", "--namespace", "none")["entries"] == 0
    assert run_json("--store", url, "verify") == {"checked": 3, "unsound": []}
    assert run_json("--store", url, "gc") == {"blobs": 0, "blob_bytes": 0, "expired": 0}
    assert run("--store", url, "rm", key, "--yes").returncode == 0
    assert len(run_json("--store", url, "ls")) == 2


def test_what_is_pinned_outlives_an_eviction(url: str) -> None:
    kept, *others = run_json("--store", url, "ls")
    assert run("--store", url, "pin", kept["key"]).returncode == 0
    gone = run_json("--store", url, "evict", "--to", "0", "--yes")
    assert gone["entries"] == 2
    assert gone["blob_bytes"] == sum(row["blob_bytes"] for row in others)
    assert [row["key"] for row in run_json("--store", url, "ls")] == [kept["key"]]
    assert run("--store", url, "unpin", kept["key"]).returncode == 0
    assert run_json("--store", url, "evict", "--to", "0", "--yes")["left_bytes"] == 0


def test_no_password_is_shown(url: str) -> None:
    shown = [
        run("--store", url, "stats"),
        run("--store", f"{url}&bogus=1", "stats"),
        run("--store", url, "show", "0000000000"),
        run("--store", url.replace("hush%40", "wrong%40").replace("s3cret", "wrong"), "stats"),
    ]
    assert [done.returncode for done in shown] == [0, 2, 5, 4]
    for done in shown:
        for secret in (PASSWORD, SECRET, "hush", "%2F%3Aword", "/:word"):
            assert secret not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hush@127.0.0.1:1/0",
        "redis+sentinel://:hush@127.0.0.1:1/fleet",
        "redis+cluster://:hush@127.0.0.1:1",
        "postgresql+psycopg://me:hush@127.0.0.1:1/states?blobs=file:///tmp",
    ],
)
def test_a_dead_place_is_one_line_with_a_remedy_and_exit_code_4(url: str) -> None:
    said = refused(4, "--store", url, "ls")
    assert "127.0.0.1:1" in said
    assert "server" in said or "does Sentinel answer" in said
    assert "hush" not in said
    assert len(said) < 400, said


def test_a_store_without_tables_names_the_command(tmp_path: Path) -> None:
    server = shared_server()
    database = server.create_database("template1")
    url = server.url(database, tmp_path / "blobs")
    assert "db upgrade" in refused(4, "--store", url, "ls")
    assert run_json("--store", url, "db", "current")["standing"] == "empty"
    assert run("--store", url, "db", "upgrade").stdout.startswith("upgraded from nothing")
    assert run_json("--store", url, "db", "current")["standing"] == "current"
    server.drop_database(database)


def test_only_a_catalog_is_upgraded(redis_url: str) -> None:
    assert "no SQL catalog" in refused(2, "--store", redis_url, "db", "upgrade")


@pytest.mark.parametrize("command", ["ls", "stats", "gc", "verify", "db current", "db upgrade"])
def test_where_no_store_is_none_is_made_and_all_say_the_same(tmp_path: Path, command: str) -> None:
    said = refused(2, "--store", str(tmp_path / "s"), *command.split())
    assert f"there is no store in {tmp_path / 's'}" in said
    assert not (tmp_path / "s").exists()


def test_a_store_that_is_named_by_an_empty_variable_is_not_the_default_one() -> None:
    assert "--store" in refused(2, "--store", "", "evict", "--to", "0", "--yes")


def test_limits_of_a_url_are_shown(tmp_path: Path) -> None:
    marks = "&high=95%&low=0.5&ttl=36h&policy=lru"
    place = f"{tmp_path / 's'}?budget=1MiB&budget.default=512KiB&budget.other=2MiB{marks}"
    with open_store(place) as store:
        fill(store, 2)
        held = store.usage().blob_bytes
    told = run_json("--store", place, "stats")
    limits = {
        "total_bytes": 1 << 20,
        "namespaces": {
            "default": {"budget_bytes": 1 << 19, "blob_bytes": held},
            "other": {"budget_bytes": 2 << 20, "blob_bytes": 0},
        },
        "high": 0.95,
        "low": 0.5,
        "policy": "lru",
        "ttl_s": 129600.0,
    }
    assert told["limits"] == told["tiers"][0]["limits"] == limits
    said = run("--store", place, "stats").stdout
    assert re.search(r"of default +[0-9.]+ KiB of 512.0 KiB, [1-9]+%\n", said)
    assert re.search(r"of other +0 B of 2.0 MiB, 0%\n", said)
    assert re.search(r"room +made above 95% of the budget, down to 50%; policy lru\n", said)
    assert re.search(r"ttl +36 h after a state is put\n", said)
    alone = run_json("--store", place, "stats", "--namespace", "other")
    assert (alone["budget_bytes"], alone["blob_bytes"]) == (2 << 20, 0)
    checked = run("--store", place, "doctor").stdout
    assert "room is made above 95% of the budget, down to 50%; policy lru" in checked
    assert "namespace other holds 0 B of 2.0 MiB" in checked
    assert "the budget of namespace other, 2.0 MiB, is more than that of all, 1.0 MiB" in checked


def test_limits_of_every_tier_are_shown(tmp_path: Path) -> None:
    """Of memory too, which nobody else sees into; a place without any has none."""
    with open_store(str(tmp_path / "s")) as store:
        fill(store, 1)
    told = run_json("--store", f"memory:?budget=1MiB&low=80% {tmp_path / 's'}", "stats")
    near, home = told["tiers"]
    assert (near["limits"]["total_bytes"], near["limits"]["low"]) == (1 << 20, 0.8)
    assert home["limits"] is told["limits"] is told["budget_bytes"] is None
    said = run("--store", f"memory:?budget=1MiB&low=80% {tmp_path / 's'}", "stats").stdout
    assert "made above 100% of the budget, down to 80%" in said


def test_limits_that_mean_nothing_hide_no_other_tier(tmp_path: Path) -> None:
    with open_store(str(tmp_path / "s")) as store:
        fill(store, 1)
    near, home = run_json("--store", f"memory:?budget=x {tmp_path / 's'}", "stats")["tiers"]
    assert "'x' is not a size" in near["error"]
    assert home["entries"] == 1


def test_a_budget_that_pins_fill_is_told(tmp_path: Path) -> None:
    place = f"{tmp_path / 's'}?budget.default=1MiB"
    with open_store(place) as store:
        fill(store, 3)
        bytes_each = store.usage().blob_bytes // 3
    assert run("--store", place, "pin", "--namespace", "default", "--yes").returncode == 0
    assert "pinned states hold" not in run("--store", place, "doctor").stdout
    tight = place.replace("1MiB", str(3 * bytes_each + 100))
    done = run("--store", tight, "doctor")
    assert done.returncode == 0
    assert re.search(r"pins +pinned states hold .* of the budget of namespace default", done.stdout)
    roomy = f"{place}&low={1.5 * bytes_each / (1 << 20):.4f}"  # the mark is below what is pinned
    assert "pinned states hold" in run("--store", roomy, "doctor").stdout
    exceeded = run("--store", place.replace("1MiB", str(2 * bytes_each)), "doctor").stdout
    assert f"evict --namespace default --to {2 * bytes_each}`" in exceeded


def test_a_directory_takes_options_and_shows_its_budget(tmp_path: Path) -> None:
    place = f"{tmp_path / 's'}?codec=raw&budget=1MiB&budget.default=512KiB"
    with open_store(place) as store:
        fill(store, 2)
    assert (tmp_path / "s" / "catalog.sqlite3").is_file()
    assert run_json("--store", place, "stats")["budget_bytes"] == 1 << 20
    assert run_json("--store", place, "stats", "--namespace", "default")["budget_bytes"] == 1 << 19
    assert re.search(r"stored +[0-9.]+ KiB of 1.0 MiB", run("--store", place, "stats").stdout)
    known = refused(2, "--store", f"{tmp_path / 's'}?budge=1MiB", "stats")
    assert all(option in known for option in ("budget", "policy", "ttl", "keys", "codec"))


@pytest.mark.parametrize("command", [("ls",), ("doctor", "--json"), ("db", "current"), ("gc",)])
def test_a_directory_that_may_not_be_looked_into_is_said_to_be_so(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    root = tmp_path / "s"
    with open_store(str(root)) as store:
        fill(store, 1)
    plainly = []
    if os.geteuid() == 0:  # who is let in everywhere
        if shutil.which("setpriv") is None:
            pytest.skip("not run: root may look everywhere, and there is no setpriv")
        plainly = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    root.chmod(0)
    done = subprocess.run(
        [*plainly, sys.executable, "-m", "statestore", "--store", str(root), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    root.chmod(0o700)
    said = done.stdout + done.stderr
    assert done.returncode == 4, said
    assert "Traceback" not in said
    assert "Permission denied" in said
    assert str(root) in said
    assert "the right" in said


def test_directories_are_tiers_too(tmp_path: Path) -> None:
    near, home = tmp_path / "near by", tmp_path / "at home"
    place = f"{near}?budget=1MiB {home}"
    with open_store(place) as store:
        fill(store, 1)
    assert [run_json("--store", str(path), "stats")["entries"] for path in (near, home)] == [1, 1]
    assert run_json("--store", place, "ls")[0]["tier"] == "file2"


def test_keygen_makes_and_rotates_and_shows_no_key(tmp_path: Path) -> None:
    file = tmp_path / "states.keys"
    place = f"{tmp_path / 's'}?keys={file}"
    shown = run("keygen", str(file))
    with open_store(place) as store:
        fill(store, 1)
    shown_again = run("keygen", "--rotate", str(file))
    keys = re.findall(r"(?m)^[0-9a-f]{64}$", file.read_text())
    assert (shown.returncode, shown_again.returncode, len(set(keys))) == (0, 0, 2)
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob(".*")) == []
    assert not any(
        key in done.stdout + done.stderr for key in keys for done in (shown, shown_again)
    )
    assert run_json("--store", place, "verify")["unsound"] == []
    file.write_text(keys[0])
    assert run("--store", place, "verify").returncode == 3, "the key that encrypted it has gone"


def test_keygen_replaces_nothing_by_mistake(tmp_path: Path) -> None:
    file = tmp_path / "states.keys"
    assert "cannot be read" in refused(2, "keygen", "--rotate", str(file))
    assert not file.exists()
    assert run("keygen", str(file)).returncode == 0
    before = file.read_text()
    assert "--rotate" in refused(2, "keygen", str(file))
    file.write_text(f"{before}nonsense\n")
    assert "line 3" in refused(2, "keygen", "--rotate", str(file))
    assert file.read_text() == f"{before}nonsense\n"


def test_a_key_in_a_url_is_refused_and_not_shown() -> None:
    key = "ab" * 32
    for url in (f"file:///tmp/s?keys={key}", f"file:///tmp/s?keys={key}&bogus=1"):
        assert key not in refused(2, "--store", url, "gc")


def test_the_command_starts_without_what_it_may_not_need() -> None:
    heavy = (
        "{'torch', 'sqlalchemy', 'alembic', 'redis', 'psycopg', 'obstore', 'cryptography', 'rich'}"
    )
    code = (
        "import sys\nfrom statestore.cli import main\n"
        f"main(['--help'], standalone_mode=False)\nprint(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1].replace("'", '"')) == []
