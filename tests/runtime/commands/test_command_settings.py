"""`rwkv-runtime` with a file of settings, and `rwkv-runtime explain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from rwkv_runtime.__main__ import defaults_of
from rwkv_runtime.commands.ask import ask
from rwkv_runtime.commands.serve import serve
from rwkv_runtime.demo import MODEL_PATH
from rwkv_runtime.engines import LOSSY
from statestore import open_store
from statestore.config import Config, ServerSettings, load
from statestore.config.reading import keys_of
from tests.runtime.workers.commanded import run

TEXT = "The cobalt mill stood by the river. " * 30


def run_json(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "document.txt"
    path.write_text(TEXT)
    return path


def test_model_store_namespace_and_salt_come_from_the_file(tmp_path: Path, document: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(
        f"[store]\nurl = './states'\nnamespace = 'tenant'\nsalts = {{tenant = 'hush'}}\n"
        f"[runtime]\nmodel = '{MODEL_PATH}'\nthreads = 1\n"
    )
    base = ("--config", str(config))
    (warmed,) = run_json(*base, "warm", str(document))["documents"]
    assert warmed["computed_tokens"] > 256
    with open_store(str(tmp_path / "states")) as store:
        assert {entry.namespace for entry in store.list()} == {"tenant"}
    seen = run_json(*base, "explain", str(document))
    assert seen["found_tokens"] == seen["tokens"] == warmed["computed_tokens"]
    asked = run_json(*base, "explain", str(document), "--question", "Who?")
    assert asked["boundaries"][-1]["why"] == "never stored"
    assert asked["found_tokens"] > 0
    config.write_text(config.read_text().replace("hush", "other"))
    assert run_json(*base, "explain", str(document))["found_tokens"] == 0, "another salt"
    assert run_json(*base, "explain", str(document), "--namespace", "default")["found"] is None
    shown = run(*base, "explain", str(document))
    assert "A lookup finds nothing" in shown.stdout


def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, document: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[runtime]\nmodle = 'x.pth'\n")
    done = run("--config", str(config), "warm", str(document))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "line 2" in done.stderr
    assert "'model'" in done.stderr


def test_every_setting_of_the_runtime_is_an_option() -> None:
    given = {f"RWKV_RUNTIME_{key.upper()}": "1" for key in keys_of("runtime")}
    given |= {"RWKV_RUNTIME_DTYPE": "bf16", "RWKV_RUNTIME_DEVICE": "cpu"}
    given |= {"RWKV_RUNTIME_LOSSY": "int8", "RWKV_RUNTIME_TOKENIZER": "bytes"}
    given |= {"RWKV_RUNTIME_KERNEL": "native"}
    given |= {"RWKV_STATESTORE_URL": "./x", "RWKV_STATESTORE_NAMESPACE": "n"}
    defaults = defaults_of(load(None, given))
    options = {option.name: option for option in ask.params}
    assert set(defaults) <= set(options)
    for name in ("dtype", "device", "tokenizer", "kernel"):
        kind, key = options[name].type, keys_of("runtime")[name].metadata["kind"]
        assert isinstance(kind, click.Choice)
        assert all(key(word) == word for word in kind.choices)
    lossy = keys_of("runtime")["lossy"].metadata["kind"]
    assert all(lossy(word) == word for word in LOSSY)


def test_the_servers_settings_are_its_options() -> None:
    options = {option.name for option in serve.params}
    assert set(keys_of("server")) - {"cors_origins"} <= options, "a list is for the file"
    assert defaults_of(Config(server=ServerSettings(port=1))) == {}, "a default is no setting"
