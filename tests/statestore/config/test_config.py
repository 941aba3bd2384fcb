"""Settings: what wins, where each value came from, what is refused, and that no secret is shown."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from statestore.config import Config, Source, default_file, load, rows, template
from statestore.config.kinds import NAMESPACE
from statestore.config.sections import SECTIONS, variable
from statestore.errors import SettingsError
from statestore.keys import namespace as namespaces

FILE = """\
# the fleet's
[store]
url = "redis://:hush@host:6379/0?budget=1GiB"
namespace = 'tenant'

[store.salts]
tenant = "secret salt"

[server]
port = 9000
shutdown_s = "1m"
max_body_bytes = "2MiB"
cors_origins = ["https://a.example", "https://b.example"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "states.toml"
    path.write_text(FILE)
    return path


def refused(text: str, tmp_path: Path) -> str:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    return str(caught.value)


def test_without_a_file_everything_is_a_default() -> None:
    config = load(None, {"RWKV_STATESTORE_CONFIG": "", "RWKV_SERVER_PORT": ""})
    assert {row.origin.source for row in rows(config)} == {Source.DEFAULT}
    assert (config.server.port, config.store.namespace) == (8000, "default")


def test_the_file_the_environment_and_flags_win_in_that_order(file: Path) -> None:
    environ = {"RWKV_SERVER_PORT": "9001", "RWKV_STATESTORE_NAMESPACE": "other"}
    config = load(file, environ, {"server.port": 9002, "server.host": None})
    assert (config.server.port, config.store.namespace) == (9002, "other")
    assert (config.server.shutdown_s, config.server.max_body_bytes) == (60.0, 2 << 20)
    assert config.server.cors_origins == ("https://a.example", "https://b.example")
    origins = {name: str(config.origin(name)) for name in config.origins}
    assert origins["server.port"] == "--port"
    assert origins["store.namespace"] == "RWKV_STATESTORE_NAMESPACE"
    assert origins["store.url"] == f"{file}, line 3"
    assert origins["store.salts"] == f"{file}, line 6"
    assert origins["server.shutdown_s"] == f"{file}, line 11"
    assert str(config.origin("server.host")) == "default"


def test_what_is_given_is_told_from_defaults(file: Path) -> None:
    given = load(file, {}).given("server")
    assert set(given) == {"port", "shutdown_s", "max_body_bytes", "cors_origins"}


def test_the_variable_names_the_file_and_a_flag_names_another(file: Path, tmp_path: Path) -> None:
    environ = {"RWKV_STATESTORE_CONFIG": str(file)}
    assert load(None, environ).server.port == 9000
    other = tmp_path / "other.toml"
    other.write_text("[server]\nport = 1\n")
    assert load(other, environ).file == other
    assert load(other, environ).server.port == 1


def test_a_file_in_the_working_directory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.toml", "statestore.toml", "rwkv-statestore.toml"):
        (tmp_path / name).write_text("[server]\nport = 1\n")
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).server.port == 8000
    assert default_file().is_absolute()


def test_paths_in_a_file_count_from_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        "[store]\nurl = 'memory:?budget=1GiB ./near states/far?codec=raw'\n"
        "[runtime]\nmodel = 'w.pth'\ninitial_state = '/abs'\n"
    )
    config = load(path, {})
    assert config.store.url.startswith(f"memory:?budget=1GiB {tmp_path}/./near")
    assert config.runtime.model == tmp_path / "w.pth"
    assert config.runtime.initial_state == Path("/abs")
    assert load(None, {"RWKV_RUNTIME_MODEL": "w.pth"}).runtime.model == Path("w.pth")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nhost = 'x'\nprot = 1", ("line 3", "prot", "did you mean 'port'")),
        ("[serve]\nport = 1", ("line 1", "serve", "did you mean 'server'")),
        ("[store]\nzzzz = 1", ("line 2", "known: url, namespace, salts")),
        ("[server]\nport = 'many'", ("line 2", "from 0 to 65535", "'many'")),
        ("[server]\nport = true", ("line 2", "from 0 to 65535")),
        ("[server]\nport = 99999", ("65535", "99999")),
        ("[runtime]\ndtype = 'fp8'", ("line 2", "fp32, bf16, fp16", "fp8")),
        ("[runtime]\nthreads = 0", ("1 and more",)),
        ("[server]\nmax_body_bytes = '2 miles'", ("a size such as",)),
        ("[server]\nshutdown_s = -1", ("a time such as",)),
        ("[server]\ncors_origins = [1]", ("a list of texts",)),
        ("[store]\nnamespace = 'a b'", ("line 2", "letters, digits")),
        ("[store.salts]\n'a b' = 'x'", ("line 1", "namespaces and their salts")),
        ("store = 1", ("line 1", "[store] as a table")),
        ("server.prot = 1", ("line 1", "did you mean 'port'")),
        ("[server\nport = 1", ("not TOML", "line 1")),
        ("[store]\nurl = 1", ("line 2", "a text")),
        ("[server]\nshutdown_s = inf", ("line 2", "a time such as")),
        ("[server]\nmax_body_bytes = nan", ("line 2", "a size such as")),
        ("[server]\nmax_body_bytes = inf", ("line 2", "a size such as")),
        ("[server]\nport = '" + "9" * 5000 + "'", ("line 2", "from 0 to 65535")),
        ("[server]\nport = " + "9" * 5000, ("not TOML",)),
        ("[server]\nport = " + "[" * 5000, ("not TOML",)),
        ("[[store]]\nurl = 'x'", ("line 1", "[store] as a table")),
        ("[runtime]\nmodel = '~nobody-of-this-name/x'", ("line 2", "home directory")),
    ],
)
def test_a_mistake_is_named_with_its_file_and_line(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    said = refused(text, tmp_path)
    assert str(tmp_path / "bad.toml") in said
    assert all(word in said for word in words), said


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    with pytest.raises(SettingsError, match=r"RWKV_STATESTORE_CONFIG.*home directory"):
        load(None, {"RWKV_STATESTORE_CONFIG": "~nobody-of-this-name/c.toml"})
    with pytest.raises(SettingsError, match=r"RWKV_SERVER_PORT.*'x'"):
        load(None, {"RWKV_SERVER_PORT": "x"})


@pytest.mark.parametrize("content", [b"\xff", b"x" * (1 << 20) + b"x"])
def test_a_file_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"UTF-8|1 MiB"):
        load(path, {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path, {})
    with pytest.raises(SettingsError, match=r"nowhere.*cannot be read"):
        load(tmp_path / "nowhere", {})


def test_no_secret_is_shown(file: Path) -> None:
    config = load(file, {"RWKV_STATESTORE_SALTS": "tenant=env salt,more=salt 2"})
    shown = str([(row.value, row.origin) for row in rows(config)]) + repr(config)
    assert "hush" not in shown
    assert "salt 2" not in shown
    assert "env salt" not in shown
    values = {row.name: row.value for row in rows(config)}
    assert values["store.salts"] == {"tenant": "***", "more": "***"}
    assert values["store.url"] == "redis://:***@host:6379/0?budget=1GiB"
    assert config.store.salt("more") == b"salt 2"
    assert config.store.salt("nobody") == b""


@pytest.mark.parametrize(
    "text",
    [
        "[store]\nsalts = 'hush'",
        "[store.salts]\na = 1\nb = 'hush'",
        "[store]\nurl = ['redis://:hush@h']",
    ],
)
def test_no_secret_is_in_an_error(text: str, tmp_path: Path) -> None:
    assert "hush" not in refused(text, tmp_path)


def test_variables_that_are_no_settings_are_noticed() -> None:
    environ = {"RWKV_SERVER_PROT": "1", "RWKV_JIT_ON": "1", "RWKV_SERVER_PORT": "1"}
    environ |= {"RWKV_STATESTORE_CONFIG": "", "RWKV_STATESTORE_KERNEL": "numpy"}
    assert load(None, environ).strays == ("RWKV_SERVER_PROT",)


def test_the_template_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(template())
    assert load(path, {}).origins == {}
    lines = template().splitlines()
    path.write_text("\n".join(line[2:] if " = " in line else line for line in lines))
    written = tomllib.loads(path.read_text())
    assert {section: set(table) for section, table in written.items()} == {
        name: {row.key for row in rows(Config()) if row.section == name} for name in SECTIONS
    }
    config = load(path, {})
    assert {row.name: row.value for row in rows(config)} == {
        row.name: row.value for row in rows(Config())
    }


def test_every_setting_can_come_from_the_environment() -> None:
    examples: dict[str, Any] = {
        "salts": "a=b", "dtype": "bf16", "device": "cuda", "lossy": "int8", "tokenizer": "world",
        "namespace": "n", "cors_origins": "x,y", "kernel": "native",
    }  # fmt: skip
    for row in rows(Config()):
        for value in (examples.get(row.key), "7", "auto", "true", "raw"):
            if value is None:
                continue
            try:
                config = load(None, {variable(row.section, row.key): value})
            except SettingsError:
                continue
            assert str(config.origin(row.name)) == row.variable
            break
        else:
            pytest.fail(f"{row.variable} takes none of the examples")


def test_a_home_that_cannot_be_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """As sudo may leave another user's: what the settings there say must not be passed over."""
    monkeypatch.setenv("XDG_CONFIG_HOME", f"/{'x' * 5000}")  # not even root can
    with pytest.raises(SettingsError, match=r"config.toml: .*; name another by --config or RWKV_"):
        load(None, {})


def test_a_namespace_is_what_the_keys_say() -> None:
    assert NAMESPACE.pattern == namespaces.NAME.pattern
